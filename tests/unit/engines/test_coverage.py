"""INT8 is proven by what each engine executes; a build that executes less fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.networks import CONVOLUTIONS, RESIDUAL_ADDS, TINY_CLIP, request
from support.shelf import KEPT, STATIC, VARIANTS, WHOLE, Shelf

from qray.engines import inductor, pt2e
from qray.engines.layers import Layers, check_coverage, layers_of, resolve_keep_fp32
from qray.engines.onnxruntime import executed_int8
from qray.errors import QrayError
from qray.model.regressor import VideoRegressor
from qray.study import ClipSpec, Model

FLOAT = tuple(name for name, v in VARIANTS.items() if v.method in ("fp32", "bf16"))
KEPT_FULL_NAME = f"backbone.{KEPT}"


@pytest.fixture(scope="module")
def layers(shelf: Shelf) -> Layers:
    return layers_of(shelf.model, TINY_CLIP)


@pytest.fixture(scope="module")
def macs(layers: Layers) -> dict[str, int]:
    return {layer.name: layer.macs for layer in layers if layer.macs}


@pytest.mark.parametrize("name", FLOAT)
def test_nothing_of_a_float_variant_runs_in_int8(shelf: Shelf, name: str) -> None:
    assert shelf[name].built.int8_mac_share == 0


@pytest.mark.parametrize("name", WHOLE)
def test_more_than_99_percent_of_the_macs_run_in_int8(shelf: Shelf, name: str) -> None:
    assert shelf[name].built.int8_mac_share > 0.99


@pytest.mark.parametrize("name", WHOLE)
def test_all_convolutions_run_in_int8(shelf: Shelf, name: str) -> None:
    assert shelf[name].built.notes["int8_layers"] == CONVOLUTIONS


@pytest.mark.parametrize("name", WHOLE)
def test_all_residual_adds_run_in_int8(shelf: Shelf, name: str) -> None:
    assert shelf[name].built.notes["int8_residual_adds"] == RESIDUAL_ADDS


@pytest.mark.parametrize("name", [name for name in STATIC if name not in WHOLE])
def test_a_kept_layer_is_the_only_one_in_fp32(shelf: Shelf, name: str, macs: dict[str, int]) -> None:
    kept = (macs[KEPT_FULL_NAME] + macs["head"]) / sum(macs.values())
    assert shelf[name].built.int8_mac_share == pytest.approx(1 - kept)


@pytest.mark.parametrize("name", [name for name in STATIC if name not in WHOLE])
def test_residual_adds_run_in_int8_beside_a_kept_layer(shelf: Shelf, name: str) -> None:
    assert shelf[name].built.notes["int8_residual_adds"] == RESIDUAL_ADDS


def test_dynamic_counts_the_linear_layer_alone(shelf: Shelf, macs: dict[str, int]) -> None:
    assert shelf["dynamic"].built.int8_mac_share == pytest.approx(macs["head"] / sum(macs.values()))


def test_macs_are_those_of_the_paper() -> None:
    """1.81 GMAC for 224 px; torchvision's table says 1.814."""
    layers = layers_of(VideoRegressor(Model(width=64)), ClipSpec(frames=1, image_size=224))
    backbone = sum(layer.macs for layer in layers if not layer.tail)
    assert backbone == pytest.approx(1.814e9, rel=1e-3)


def convolutions(macs: dict[str, int]) -> set[str]:
    return {name for name in macs if name.startswith("backbone.")}


def test_the_check_fails_for_the_smallest_convolution(layers: Layers, macs: dict[str, int]) -> None:
    smallest = min(convolutions(macs), key=lambda name: macs[name])
    with pytest.raises(QrayError, match=f"1 of {CONVOLUTIONS} convolutions in FP32: {smallest}"):
        check_coverage(layers, convolutions(macs) - {smallest}, RESIDUAL_ADDS, ())


def test_the_check_fails_for_one_residual_add(layers: Layers, macs: dict[str, int]) -> None:
    with pytest.raises(QrayError, match=f"1 of {RESIDUAL_ADDS} residual adds in FP32"):
        check_coverage(layers, convolutions(macs), RESIDUAL_ADDS - 1, ())


def test_the_check_fails_for_a_kept_layer_that_ran_in_int8(layers: Layers, macs: dict[str, int]) -> None:
    with pytest.raises(QrayError, match=f"keep_fp32 names: {KEPT_FULL_NAME}"):
        check_coverage(layers, convolutions(macs), RESIDUAL_ADDS, (KEPT_FULL_NAME,))


def test_what_a_quantizer_leaves_is_not_wanted_and_may_not_be_much(layers: Layers, macs: dict[str, int]) -> None:
    by_size = sorted(convolutions(macs), key=lambda name: macs[name])
    smallest, largest = by_size[0], by_size[-1]
    share = check_coverage(layers, convolutions(macs) - {smallest}, RESIDUAL_ADDS, (), {smallest})
    assert share == pytest.approx(1 - (macs[smallest] + macs["head"]) / sum(macs.values()))
    with pytest.raises(QrayError, match=f"the quantizer leaves 1 convolution in FP32, .*: {largest}"):
        check_coverage(layers, convolutions(macs) - {largest}, RESIDUAL_ADDS, (), {largest})


def test_what_runs_a_network_is_told_and_what_falls_back_to_slow_kernels_is_named(shelf: Shelf) -> None:
    openvino, executorch = (shelf[f"ptq-{engine}"].built.notes for engine in ("openvino", "executorch"))
    assert sum(openvino["run_by"].values()) >= CONVOLUTIONS
    assert all("I8" in kernel for kernel in openvino["run_by"] if "f32" not in kernel)
    assert executorch["run_by"]["XNNPACK"] > CONVOLUTIONS
    # Clips are turned and cast before XNNPACK is given them, by ExecuTorch's own kernels.
    assert executorch["fallbacks"]["aten::permute_copy"] == 1
    assert executorch["run_by"]["portable"] == sum(executorch["fallbacks"].values())


def test_an_fp32_session_fails_the_check(shelf: Shelf, layers: Layers, tmp_path: Path) -> None:
    from qray.engines import onnxruntime

    optimized = tmp_path / "optimized.onnx"
    onnxruntime.session_of(shelf["fp32-onnxruntime"].folder / "model.onnx", 1, optimized)
    with pytest.raises(QrayError, match=f"{CONVOLUTIONS} of {CONVOLUTIONS} convolutions in FP32"):
        check_coverage(layers, *executed_int8(optimized), ())


def test_a_layer_kept_without_being_asked_for_fails_the_check(shelf: Shelf, layers: Layers, tmp_path: Path) -> None:
    from qray.engines import onnxruntime

    optimized = tmp_path / "optimized.onnx"
    onnxruntime.session_of(shelf["ptq-onnxruntime-minmax"].folder / "model.onnx", 1, optimized)
    with pytest.raises(QrayError, match=f"1 of {CONVOLUTIONS} convolutions in FP32: {KEPT_FULL_NAME}"):
        check_coverage(layers, *executed_int8(optimized), ())


def test_an_fp32_openvino_model_fails_the_check(shelf: Shelf, layers: Layers) -> None:
    from qray.engines import openvino
    from qray.engines.openvino import executed_in

    compiled = openvino.compile_for_cpu(str(shelf["fp32-openvino"].folder / "model.xml"), "fp32", 1)
    with pytest.raises(QrayError, match=f"{CONVOLUTIONS} of {CONVOLUTIONS} convolutions in FP32"):
        check_coverage(layers, *executed_in(compiled, {"i8", "u8"}, {layer.name for layer in layers}), ())


def test_a_compiled_call_without_int8_counts_for_nothing() -> None:
    call = "aoti_torch_cpu_mkldnn__convolution_pointwise(b0, f, &temporary_reference(backbone_conv1_weight.get()), x)"
    assert inductor.int8_layers(call, {"backbone.conv1"}) == (set(), 0)


def test_an_int8_call_belongs_to_the_layer_it_names() -> None:
    bias = "&temporary_reference(backbone_conv1_weight_bias.get())"
    call = f"aoti_torch_cpu__qconv_pointwise_tensor(b0, s, z, f, {bias}, x)"
    assert inductor.int8_layers(call, {"backbone.conv1"}) == ({"backbone.conv1"}, 0)


def test_a_layer_that_the_model_has_not_cannot_be_kept(layers: Layers) -> None:
    with pytest.raises(QrayError, match=r"no layer layer9\.conv; the model has conv1, layer1\.0\.conv1"):
        resolve_keep_fp32(layers, ("layer9.conv",))


@pytest.mark.slow
def test_a_package_that_executes_less_is_not_built(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantizer is made to leave out a layer that nobody asked to keep."""
    left_out = request(VARIANTS["ptq-inductor-w4"], shelf.model)
    monkeypatch.setattr(pt2e, "quantized", lambda asked: pt2e.quantize_static(left_out))
    with pytest.raises(QrayError, match=f"1 of {CONVOLUTIONS} convolutions in FP32: {KEPT_FULL_NAME}"):
        inductor.build(shelf.request("ptq-inductor"), tmp_path)
