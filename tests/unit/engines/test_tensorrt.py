"""What TensorRT is given, and what is read of what it makes: told without a GPU, which no test has had."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support.networks import CONVOLUTIONS, RESIDUAL_ADDS, TARGET_MEAN, TARGET_STD, request, smooth_clips, two_stages
from support.shelf import KEPT

from qray.engines import tensorrt
from qray.engines.catalog import ENGINES
from qray.engines.layers import resolve_keep_fp32
from qray.engines.onnx_export import export_onnx
from qray.engines.onnx_quantize import quantize
from qray.engines.onnxruntime import runner, session_of, simulate
from qray.engines.registry import missing_requirement
from qray.engines.tail import PREFIX
from qray.engines.torch_export import to_half
from qray.errors import Unavailable
from qray.model.regressor import VideoRegressor, build_regressor
from qray.study import Model, Variant

PTQ = Variant(name="ptq-tensorrt", method="ptq", engine="tensorrt", device="cuda")
NETWORKS = ("two stages of resnet18", "mobilenet_v2", "mobilenet_v3_small")


def network(name: str) -> VideoRegressor:
    if "resnet" in name:
        return two_stages()
    return build_regressor(Model(backbone=name), TARGET_MEAN, TARGET_STD, seed=0).eval()


def written(folder: Path, model: VideoRegressor, keep: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """The FP32 graph of a network, and the one that TensorRT is given."""
    source, target = folder / "fp32.onnx", folder / "int8.onnx"
    asked = request(PTQ, model)
    layers = export_onnx(asked, source)
    quantize(asked, source, target, resolve_keep_fp32(layers, keep), tensorrt=True)
    return source, target


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """FP32 and quantized, by network."""
    return {name: written(tmp_path_factory.mktemp("qdq"), network(name)) for name in NETWORKS}


class Read:
    """A graph by its names."""

    def __init__(self, path: Path) -> None:
        self.nodes = list(onnx.load(str(path)).graph.node)
        self.constants = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
        self.made = {name: node for node in self.nodes for name in node.output}

    def of(self, kind: str) -> list[Any]:
        return [node for node in self.nodes if node.op_type == kind]

    def pair(self, name: str) -> tuple[Any, Any] | None:
        """The nodes that quantized what bears this name, and took it back; None for what is not quantized."""
        back = self.made.get(name)
        if back is None or back.op_type != "DequantizeLinear":
            return None
        return self.made[back.input[0]], back


@pytest.mark.parametrize("name", NETWORKS)
def test_codes_are_signed_symmetric_and_those_of_activations_have_one_scale(
    graphs: dict[str, tuple[Path, Path]], name: str
) -> None:
    graph = Read(graphs[name][1])
    assert graph.of("QuantizeLinear")
    for node in graph.of("QuantizeLinear") + graph.of("DequantizeLinear"):
        scale, zero = (graph.constants[each] for each in node.input[1:3])
        assert zero.dtype == np.int8
        assert not zero.any()
        of_weights = node.input[0] in graph.constants or node.input[0] in {
            n.output[0] for n in graph.of("QuantizeLinear") if n.input[0] in graph.constants
        }
        assert (scale.ndim == 1) == of_weights


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_has_quantized_operands_and_a_bias_in_floats(
    graphs: dict[str, tuple[Path, Path]], name: str
) -> None:
    graph = Read(graphs[name][1])
    convolutions = graph.of("Conv")
    assert len(convolutions) == len(Read(graphs[name][0]).of("Conv"))
    for node in convolutions:
        activation, weight = map(graph.pair, node.input[:2])
        assert activation is not None
        assert weight is not None
        values = graph.constants[weight[0].input[0]]
        for each in weight:
            assert [a.i for a in each.attribute if a.name == "axis"] == [0]
            assert graph.constants[each.input[1]].shape == (len(values),)
        assert all(graph.constants[each].dtype == np.float32 for each in node.input[2:])


@pytest.mark.parametrize("name", NETWORKS)
def test_of_each_residual_add_what_its_convolution_gives_stays_as_it_is(
    graphs: dict[str, tuple[Path, Path]], name: str
) -> None:
    """Else the convolution could not add in its own kernel."""
    graph = Read(graphs[name][1])
    adds = [node for node in graph.of("Add") if any(map(graph.pair, node.input))]
    assert len(adds) == {"two stages of resnet18": RESIDUAL_ADDS, "mobilenet_v2": 10, "mobilenet_v3_small": 6}[name]
    for node in adds:
        kept = [each for each in node.input if graph.pair(each) is None]
        assert [graph.made[each].op_type for each in kept] == ["Conv"]
        assert sum(kept[0] in other.input for other in graph.nodes) == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_of_the_tail_is_quantized_and_nothing_is_left_over(
    graphs: dict[str, tuple[Path, Path]], name: str
) -> None:
    graph, found = Read(graphs[name][1]), tensorrt.read_graph(graphs[name][1])
    assert found.quantized_in_tail == []
    assert not any(node.name.startswith(PREFIX) for node in graph.of("QuantizeLinear"))
    read = Counter(each for node in graph.nodes for each in node.input)
    assert [node.name for node in graph.nodes if not any(read[each] for each in node.output)] == [graph.nodes[-1].name]
    assert [each for each in graph.constants if not read[each]] == []


def test_layers_that_are_to_stay_in_fp32_are_not_quantized(tmp_path: Path) -> None:
    graph = Read(written(tmp_path, two_stages(), (KEPT,))[1])
    (node,) = [node for node in graph.of("Conv") if any(KEPT in each for each in node.input)]
    assert [graph.pair(each) for each in node.input[1:]] == [None, None]
    assert sum(graph.pair(node.input[1]) is not None for node in graph.of("Conv")) == CONVOLUTIONS - 1


def test_the_quantized_graph_predicts_what_fp32_does_or_nearly(graphs: dict[str, tuple[Path, Path]]) -> None:
    clips = smooth_clips(16, seed=77).numpy()
    source, target = graphs["two stages of resnet18"]
    fp32, int8 = runner(session_of(source, 1))(clips), simulate(target).predict(clips)
    assert np.corrcoef(fp32, int8)[0, 1] > 0.95


@pytest.mark.parametrize("method", ["fp32", "fp16", "ptq"])
def test_clips_are_cast_before_anything_is_done_with_their_bytes(
    graphs: dict[str, tuple[Path, Path]], tmp_path: Path, method: str
) -> None:
    source, target = graphs["two stages of resnet18"]
    if method == "fp16":
        asked = request(PTQ, two_stages())
        export_onnx(replace(asked, model=to_half(asked.model, method)), source := tmp_path / "fp16.onnx")
    path = target if method == "ptq" else source
    model = onnx.load_from_string(tensorrt.for_parser(path))
    onnx.checker.check_model(model, full_check=True)
    (clips,) = model.graph.input
    assert clips.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [node.op_type for node in model.graph.node if clips.name in node.input] == ["Cast"]
    given = smooth_clips(3, seed=5).numpy()
    np.testing.assert_array_equal(
        session_of(model.SerializeToString(), 1).run(None, {"clips": given})[0], runner(session_of(path, 1))(given)
    )
    # TensorRT's own cast of it may come later; one that comes at once stays where it is.
    (tmp_path / "again.onnx").write_bytes(model.SerializeToString())
    assert onnx.load_from_string(tensorrt.for_parser(tmp_path / "again.onnx")).graph == model.graph


def kernel(name: str, datatype: str, metadata: str = "") -> dict[str, Any]:
    """As an engine inspector tells it of a convolution, in the form of NVIDIA's documentation."""
    return {
        "Name": name, "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "a", "Dimensions": [16, 512, 28, 28], "Format/Datatype": datatype}],
        "Outputs": [{"Name": "b", "Dimensions": [16, 256, 28, 28], "Format/Datatype": datatype}],
        "ParameterType": "Convolution", "Metadata": metadata,
    }  # fmt: skip


def test_what_runs_in_int8_is_read_of_the_plan() -> None:
    int8 = "Thirty-two wide channel vectorized row major Int8 format."
    graph = tensorrt.Graph({"node_conv2d": "conv1", "node_conv2d_1": "a.conv", "node_conv2d_2": "b.conv"},
                           ["node_add_7"], [])  # fmt: skip
    layers = [
        kernel("conv1.weight + conv1.weight_QuantizeLinear + node_conv2d + node_relu", int8),
        kernel("fused", int8, "[ONNX Layer: node_conv2d_2]\x1f[ONNX Layer: node_add_7]"),
        kernel("a.weight + node_conv2d_1", "Row major linear FP32"),
        kernel("Reformatting CopyNode for Input Tensor 0 to node_pool", "Row major linear UINT8 format"),
    ]
    assert tensorrt.executed_int8(layers, graph) == ({"conv1", "b.conv"}, 1)
    assert tensorrt.executed_int8([kernel("node_conv2d", "Row major linear UINT8 format")], graph) == (set(), 0)


def test_weights_count_a_byte_each_where_they_are_quantized(graphs: dict[str, tuple[Path, Path]]) -> None:
    source, target = graphs["two stages of resnet18"]
    weights = sum(v.size for v in Read(source).constants.values() if v.ndim == 4 and v.size > 3)
    saved = tensorrt.coded_bytes(source) - tensorrt.coded_bytes(target)
    # What comes instead are scales and zero points.
    assert 2 * weights < saved < 3 * weights


def test_without_tensorrt_a_variant_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qray.engines.registry.find_spec", lambda name: None if name == "tensorrt" else object())
    assert missing_requirement(PTQ) == "tensorrt not installed: pip install 'qray[tensorrt]'"


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU does")
def test_without_a_gpu_no_plan_is_compiled(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="compiled on the GPU that it runs on"):
        tensorrt.build(request(PTQ, two_stages()), tmp_path)


def test_a_plan_is_native_code_of_the_gpu_that_it_was_compiled_on() -> None:
    assert ENGINES["tensorrt"].native
    assert ENGINES["tensorrt"].built_there
