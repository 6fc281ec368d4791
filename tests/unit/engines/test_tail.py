"""From pooling over time to the output everything is in float: no prediction is cut off at what calibration saw."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from support.networks import TINY_CLIP, realistic_model, request, smooth_clips
from support.shelf import VARIANTS, WHOLE, Shelf
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

from qray.engines import onnxruntime, pt2e
from qray.engines.artifact import BuildRequest
from qray.engines.layers import export
from qray.engines.onnxruntime import quantized_after
from qray.engines.registry import load_artifact
from qray.engines.tail import PREFIX, check_tail, tail_nodes
from qray.errors import QrayError
from qray.study import Model


@pytest.fixture(scope="module")
def unusual() -> np.ndarray:
    """Clips of which many lie beyond those that calibrated: from no contrast to far too much."""
    clips = smooth_clips(48, seed=11).float()
    contrast = torch.linspace(0.1, 2.5, 48).view(-1, 1, 1, 1, 1)
    return ((clips - 128) * contrast + 128).clamp(0, 255).to(torch.uint8).numpy()


@pytest.mark.parametrize("name", WHOLE)
def test_predictions_are_not_tied_at_either_end(shelf: Shelf, name: str, unusual: np.ndarray) -> None:
    predicted = np.sort(load_artifact(shelf[name], allow_code=True)(unusual))
    assert predicted[0] < predicted[1]
    assert predicted[-2] < predicted[-1]


@pytest.mark.parametrize("name", WHOLE)
def test_predictions_are_as_many_as_clips(shelf: Shelf, name: str, unusual: np.ndarray) -> None:
    assert len(np.unique(load_artifact(shelf[name], allow_code=True)(unusual))) == len(unusual)


@pytest.mark.parametrize("pooling", ["mean", "mean_std", "max_min"])
def test_the_tail_begins_at_pooling_over_time(pooling: str) -> None:
    model = realistic_model(Model.model_validate({"width": 4, "pooling": pooling}), passes=1, stages=2)
    graph = export(model, request(VARIANTS["fp32"], model).example()).module().graph
    names = [str(node.target) for node in tail_nodes(graph)]
    assert names[0] == "aten.view.default"
    assert "aten.linear.default" in names
    assert not any("conv" in name or "relu" in name for name in names)


class EverythingInInt8(X86InductorQuantizer):
    """The x86 quantizer as it comes."""


def test_a_converted_module_with_a_quantized_tail_is_caught(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pt2e.quantized_in_tail(shelf.simulated) == []
    monkeypatch.setattr(pt2e, "TailInFloat", lambda kept: EverythingInInt8())
    with pytest.raises(QrayError, match="quantized between pooling over time and the output: quantize_per_tensor"):
        check_tail(pt2e.quantized_in_tail(pt2e.quantize_static(shelf.request("ptq-inductor"))))


def test_an_executed_onnx_graph_with_a_quantized_tail_is_caught(shelf: Shelf, tmp_path: Path) -> None:
    """ONNX Runtime told to quantize whatever it can."""
    from onnxruntime.quantization import quantize_static

    source = shelf["fp32-onnxruntime"].folder / "model.onnx"
    target, optimized = (tmp_path / f"{name}.onnx" for name in ("int8", "optimized"))
    build = shelf.request("ptq-onnxruntime")
    feeds = iter([{"clips": build.calibration[0][:1].numpy()}])
    reader = SimpleNamespace(get_next=lambda: next(feeds, None))
    quantize_static(str(source), str(target), reader)
    onnxruntime.session_of(target, 1, optimized)
    assert quantized_after(optimized, PREFIX)


def test_the_tail_of_an_exported_onnx_graph_is_named(shelf: Shelf) -> None:
    graph = onnx.load(str(shelf["fp32-onnxruntime"].folder / "model.onnx")).graph
    named = [node for node in graph.node if node.name.startswith(PREFIX)]
    assert [value.name for value in graph.output] == ["prediction"]
    assert "Conv" not in {node.op_type for node in named}
    assert {"Gemm", "MatMul"} & {node.op_type for node in named}


@pytest.mark.parametrize("name", ["ptq-openvino", "ptq-openvino-minmax"])
def test_what_openvino_executes_after_pooling_is_float(shelf: Shelf, name: str) -> None:

    from qray.engines import openvino

    compiled = openvino.compile_for_cpu(str(shelf[name].folder / "model.xml"), "fp32", 1)
    assert openvino.quantized_after(compiled, PREFIX) == []
    assert openvino.quantized_after(compiled, "backbone.")


def test_a_graph_without_a_tail_proves_nothing() -> None:
    with pytest.raises(QrayError, match="shows no tail"):
        check_tail(None)


@pytest.mark.parametrize("pooling", ["mean", "max_min"])
def test_other_poolings_keep_their_tail_in_float_too(pooling: str, tmp_path: Path, unusual: np.ndarray) -> None:
    """ONNX Runtime and pt2e; the shelf's network pools mean and deviation."""
    model = realistic_model(Model.model_validate({"width": 8, "pooling": pooling}), passes=2, stages=2)
    build = request(VARIANTS["ptq-onnxruntime"], model, batches=1)
    assert check_tail(pt2e.quantized_in_tail(pt2e.quantize_static(build))) is None
    built = onnxruntime.build(BuildRequest(build.variant, model, TINY_CLIP, build.calibration), tmp_path)
    predicted = onnxruntime.load(tmp_path, built, 1, "cpu")(unusual)
    assert len(np.unique(predicted)) == len(unusual)
