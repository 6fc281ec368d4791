"""INT8 is proven by what each engine executes; a build that executes less fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import realistic_model, request
from shelf import KEPT, STATIC, VARIANTS, WHOLE, Shelf

from qray.errors import QrayError
from qray.measure.coverage_onnx import executed_int8
from qray.study import Model
from qray.variants import inductor, pt2e
from qray.variants.macs import check_coverage, layer_macs, residual_adds, resolve_keep_fp32

FLOAT = tuple(name for name, v in VARIANTS.items() if v.method in ("fp32", "bf16"))
KEPT_FULL_NAME = f"backbone.{KEPT}"


@pytest.fixture(scope="module")
def macs(shelf: Shelf) -> dict[str, int]:
    return layer_macs(shelf.model, shelf.request("fp32").example(1))


@pytest.mark.parametrize("name", FLOAT)
def test_nothing_of_a_float_variant_runs_in_int8(shelf: Shelf, name: str) -> None:
    assert shelf[name].built.int8_mac_share == 0


@pytest.mark.parametrize("name", WHOLE)
def test_more_than_99_percent_of_the_macs_run_in_int8(shelf: Shelf, name: str) -> None:
    assert shelf[name].built.int8_mac_share > 0.99


@pytest.mark.parametrize("name", WHOLE)
def test_all_20_convolutions_run_in_int8(shelf: Shelf, name: str) -> None:
    assert shelf[name].built.notes["int8_layers"] == 20


@pytest.mark.parametrize("name", WHOLE)
def test_all_8_residual_adds_run_in_int8(shelf: Shelf, name: str) -> None:
    assert shelf[name].built.notes["int8_residual_adds"] == 8


@pytest.mark.parametrize("name", [name for name in STATIC if name not in WHOLE])
def test_a_kept_layer_is_the_only_one_in_fp32(shelf: Shelf, name: str, macs: dict[str, int]) -> None:
    kept = (macs[KEPT_FULL_NAME] + macs["head"]) / sum(macs.values())
    assert shelf[name].built.int8_mac_share == pytest.approx(1 - kept)


@pytest.mark.parametrize("name", [name for name in STATIC if name not in WHOLE])
def test_residual_adds_run_in_int8_beside_a_kept_layer(shelf: Shelf, name: str) -> None:
    assert shelf[name].built.notes["int8_residual_adds"] == 8


def test_dynamic_counts_the_linear_layer_alone(shelf: Shelf, macs: dict[str, int]) -> None:
    assert shelf["dynamic"].built.int8_mac_share == pytest.approx(macs["head"] / sum(macs.values()))


def test_macs_are_those_of_the_paper() -> None:
    """1.81 GMAC for 224 px; torchvision's table says 1.814."""
    model = realistic_model(Model(width=64), passes=1, batch=1)
    macs = layer_macs(model, torch.zeros((1, 1, 224, 224, 3), dtype=torch.uint8))
    backbone = sum(n for name, n in macs.items() if name.startswith("backbone."))
    assert backbone == pytest.approx(1.814e9, rel=1e-3)


def convolutions(macs: dict[str, int]) -> set[str]:
    return {name for name in macs if name.startswith("backbone.")}


def test_the_check_fails_for_the_smallest_convolution(macs: dict[str, int]) -> None:
    smallest = min(convolutions(macs), key=lambda name: macs[name])
    with pytest.raises(QrayError, match=f"1 of 20 convolutions in FP32: {smallest}"):
        check_coverage(macs, convolutions(macs) - {smallest}, 8, 8, ())


def test_the_check_fails_for_one_residual_add(macs: dict[str, int]) -> None:
    with pytest.raises(QrayError, match="1 of 8 residual adds in FP32"):
        check_coverage(macs, convolutions(macs), 7, 8, ())


def test_the_check_fails_for_a_kept_layer_that_ran_in_int8(macs: dict[str, int]) -> None:
    with pytest.raises(QrayError, match=f"keep_fp32 names: {KEPT_FULL_NAME}"):
        check_coverage(macs, convolutions(macs), 8, 8, (KEPT_FULL_NAME,))


def test_an_fp32_session_fails_the_check(shelf: Shelf, macs: dict[str, int], tmp_path: Path) -> None:
    from qray.variants import onnxruntime

    optimized = tmp_path / "optimized.onnx"
    onnxruntime._session(shelf["fp32-onnxruntime"].folder / "model.onnx", 1, optimized)
    with pytest.raises(QrayError, match="20 of 20 convolutions in FP32"):
        check_coverage(macs, *executed_int8(optimized), residual_adds(shelf.model), ())


def test_a_layer_kept_without_being_asked_for_fails_the_check(
    shelf: Shelf, macs: dict[str, int], tmp_path: Path
) -> None:
    from qray.variants import onnxruntime

    optimized = tmp_path / "optimized.onnx"
    onnxruntime._session(shelf["ptq-onnxruntime-minmax"].folder / "model.onnx", 1, optimized)
    with pytest.raises(QrayError, match=f"1 of 20 convolutions in FP32: {KEPT_FULL_NAME}"):
        check_coverage(macs, *executed_int8(optimized), residual_adds(shelf.model), ())


def test_an_fp32_openvino_model_fails_the_check(shelf: Shelf, macs: dict[str, int]) -> None:
    from qray.measure.coverage_openvino import executed_in
    from qray.variants import openvino

    compiled = openvino._compile(str(shelf["fp32-openvino"].folder / "model.xml"), "fp32", 1)
    with pytest.raises(QrayError, match="20 of 20 convolutions in FP32"):
        check_coverage(macs, *executed_in(compiled, {"i8", "u8"}), residual_adds(shelf.model), ())


def test_a_compiled_call_without_int8_counts_for_nothing() -> None:
    call = "aoti_torch_cpu_mkldnn__convolution_pointwise(b0, f, &temporary_reference(backbone_conv1_weight.get()), x)"
    assert inductor.int8_layers(call, {"backbone.conv1"}) == (set(), 0)


def test_an_int8_call_belongs_to_the_layer_it_names() -> None:
    bias = "&temporary_reference(backbone_conv1_weight_bias.get())"
    call = f"aoti_torch_cpu__qconv_pointwise_tensor(b0, s, z, f, {bias}, x)"
    assert inductor.int8_layers(call, {"backbone.conv1"}) == ({"backbone.conv1"}, 0)


def test_a_layer_that_the_model_has_not_cannot_be_kept(shelf: Shelf) -> None:
    with pytest.raises(QrayError, match=r"no layer layer9\.conv; the model has conv1, layer1\.0\.conv1"):
        resolve_keep_fp32(shelf.model, ("layer9.conv",))


@pytest.mark.slow
def test_a_package_that_executes_less_is_not_built(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantizer is made to leave out a layer that nobody asked to keep."""
    left_out = request(VARIANTS["ptq-inductor-w4"], shelf.model)
    monkeypatch.setattr(pt2e, "quantized", lambda asked: pt2e.quantize_static(left_out))
    with pytest.raises(QrayError, match=f"1 of 20 convolutions in FP32: {KEPT_FULL_NAME}"):
        inductor.build(shelf.request("ptq-inductor"), tmp_path)
