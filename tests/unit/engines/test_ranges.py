"""Ranges of activations are found alike on every engine, and one clip's values are kept at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import request, smooth_clips, two_stages
from support.shelf import Shelf
from torchao.quantization.pt2e import ObserverBase

from qray.engines import nncf_quantize, pt2e
from qray.engines.artifact import BuildRequest
from qray.engines.ranges import OBSERVERS, observers
from qray.engines.registry import build_artifact
from qray.study import Variant

#: One value in a hundred thousand lies far outside.
VALUES = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
VALUES[:2] = torch.tensor([-200.0, 200.0])


def bounds(kind: str, *batches: torch.Tensor, margin: float = 1.0) -> tuple[float, float]:
    (observer,) = observers(kind, margin, ["x"]).values()
    for batch in batches:
        observer(batch)
    return observer.bounds()


def test_the_extremes_are_those_of_all_clips() -> None:
    assert bounds("minmax", torch.tensor([1.0, 3.0]), torch.tensor([-2.0, 0.0])) == (-2.0, 3.0)


def test_a_percentile_holds_its_share_of_the_values() -> None:
    low, high = bounds("percentile", VALUES)
    outside = ((low > VALUES) | (high < VALUES)).float().mean()
    assert 0 < outside <= 1.1e-4


@pytest.mark.parametrize("kind", ["percentile", "entropy", "mse"])
def test_a_rare_outlier_is_cut_off(kind: str) -> None:
    assert bounds(kind, VALUES)[1] < 100


@pytest.mark.parametrize("kind", ["percentile", "entropy", "mse"])
def test_of_values_that_are_spread_evenly_hardly_any_are(kind: str) -> None:
    assert bounds(kind, torch.linspace(-1, 3, 100_000)) == pytest.approx((-1, 3), abs=0.02)


@pytest.mark.parametrize("kind", OBSERVERS)
def test_clips_may_come_one_by_one(kind: str) -> None:
    assert bounds(kind, *VALUES.split(10_000)) == pytest.approx(bounds(kind, VALUES), rel=0.1)


@pytest.mark.parametrize("kind", OBSERVERS)
def test_a_margin_widens_both_sides(kind: str) -> None:
    plain, wide = bounds(kind, VALUES), bounds(kind, VALUES, margin=1.5)
    assert wide == pytest.approx((1.5 * plain[0], 1.5 * plain[1]))


@pytest.mark.parametrize("kind", OBSERVERS)
@pytest.mark.parametrize(("value", "expected"), [(0.0, (0.0, 0.0)), (2.0, (0.0, 2.0)), (-2.0, (-2.0, 0.0))])
def test_a_constant_has_a_range(kind: str, value: float, expected: tuple[float, float]) -> None:
    assert bounds(kind, torch.full((10,), value), torch.full((10,), value)) == expected


def test_a_network_with_a_constant_activation_is_built_for_onnx_runtime(tmp_path: Path) -> None:
    """Its own calibrator: "Too many bins for data range"."""
    model = two_stages()
    convolution: Any = model.backbone.layer1[0].conv1
    norm: Any = model.backbone.layer1[0].bn1
    with torch.no_grad():
        for tensor in (convolution.weight, norm.weight, norm.bias, norm.running_mean):
            tensor.zero_()
    build = request(Variant(name="ptq", method="ptq", engine="onnxruntime"), model)
    notes = build_artifact(build, "ptq", tmp_path / "ptq").built.notes
    assert notes["kernel_rms"] < notes["quantization_rms"]


def steps_on_onnx_runtime(build: BuildRequest, folder: Path) -> list[float]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(build_artifact(build, folder.name, folder).folder / "model.onnx")).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    of_activations = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants]
    return [float(numpy_helper.to_array(constants[node.input[1]])) for node in of_activations]


@pytest.mark.parametrize("kind", ["percentile", "entropy"])
def test_engines_find_the_same_ranges(shelf: Shelf, kind: str, tmp_path: Path) -> None:
    """Of what both quantize: which is all that convolutions in the blocks read."""
    build = request(Variant(name="ptq", method="ptq", engine="onnxruntime", observer=kind), shelf.model)
    on_inductor = replace(build, variant=build.variant.model_copy(update={"engine": "inductor"}))
    module = pt2e.observe_static(on_inductor)
    found = [m for m in module.modules() if isinstance(m, ObserverBase) and not hasattr(m, "ch_axis")]
    steps = {float(observer.calculate_qparams()[0]) for observer in found}
    others = np.array(steps_on_onnx_runtime(build, tmp_path / kind))
    same = [step for step in steps if (np.abs(others / step - 1) < 0.02).any()]
    assert len(same) >= 0.7 * len(steps)


def quantized_by_hand() -> Any:
    """clips uint8 (b, T, H, W, 3) -> values over 255, quantized within (-1, 1), as NNCF writes it."""
    import openvino as ov
    from openvino import opset13 as ops

    clips = ops.parameter([-1, 4, 48, 48, 3], np.uint8, name="clips")
    values = ops.divide(ops.convert(clips, np.float32), np.float32(255))
    made = ops.fake_quantize(values, *(np.float32(bound) for bound in (-1, 1, -1, 1)), 256)
    made.set_friendly_name("quantizer")
    return ov.Model([ops.result(made)], [clips])


@pytest.mark.parametrize(
    ("settings", "high"), [({"observer": "minmax"}, 1.0), ({"observer": "minmax", "range_margin": 1.5}, 1.5),
                           ({"observer": "percentile"}, 0.8), ({"observer": "percentile", "range_margin": 1.5}, 1.2)],
)  # fmt: skip
def test_openvino_is_given_what_nncf_has_no_estimator_for(settings: dict[str, Any], high: float) -> None:
    model = quantized_by_hand()
    variant = Variant.model_validate({"name": "ptq", "method": "ptq", "engine": "openvino"} | settings)
    clips = (smooth_clips(2).float() / 255 * 0.5).mul(255)
    clips = clips + (204 - clips.max())
    nncf_quantize.set_ranges(model, variant, [clips.to(torch.uint8)])
    (quantizer,) = [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    found = [float(quantizer.input_value(at).get_node().get_data()) for at in range(1, 5)]
    assert found[1] == found[3] == pytest.approx(high, rel=0.05)
    assert found[0] == found[2]
