"""The schema: what a study may say, and that it cannot be changed once read."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from qray.study import Study, Variant

FP32 = {"name": "fp32", "method": "fp32", "engine": "eager"}
MIXED = {"name": "m", "method": "ptq", "engine": "openvino", "accuracy": {"within": "margin"}}


def study(**changes: Any) -> Study:
    return Study.model_validate({"name": "s", "variants": [FP32]} | changes)


def test_a_study_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        study().seed = 1  # type: ignore[misc]


def test_a_section_of_a_study_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        study().training.lr = 1.0  # type: ignore[misc]


def test_lists_of_a_study_cannot_be_appended_to() -> None:
    assert isinstance(study(measure={"threads": [1, 2]}).measure.threads, tuple)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"variants": []}, "all others are compared to it"),
        ({"variants": [FP32, FP32]}, "named twice: fp32"),
        ({"variants": [FP32, {"name": "q", "method": "qat", "engine": "inductor"}]}, "add `sweep:`"),
        ({"variants": [FP32, {"name": "d", "method": "dynamic", "engine": "openvino"}]}, "dynamic runs on eager"),
        ({"variants": [FP32, {"name": "b", "method": "baseline", "engine": "none"}]}, "a row of every table"),
        ({"variants": [FP32, {"name": "Q", "method": "ptq", "engine": "inductor"}]}, "lower-case"),
        ({"variants": [FP32 | {"weight_bits": 4}]}, "belongs to ptq and qat"),
        ({"variants": [FP32, {"name": "p", "method": "ptq", "engine": "openvino", "weight_bits": 4}]}, "inductor only"),
        (
            {"variants": [FP32, {"name": "p", "method": "ptq", "engine": "inductor", "bias_correction": True}]},
            "bias_correction is offered on engine openvino only",
        ),
        (
            {"variants": [FP32, {"name": "p", "method": "ptq", "engine": "openvino", "u8u8": True}]},
            "u8u8 is offered on engine onnxruntime only",
        ),
        ({"variants": [FP32 | {"range_margin": 1.5}]}, "range_margin belongs to ptq"),
        (
            {"variants": [FP32, {"name": "p", "method": "ptq", "engine": "openvino", "observer": "median"}]},
            "variants.*observer",
        ),
        ({"variants": [FP32 | {"accuracy": {}}]}, "accuracy belongs to ptq"),
        ({"variants": [FP32, MIXED | {"keep_fp32": ["conv1"]}]}, "leave one of the two out"),
        ({"variants": [FP32, MIXED | {"accuracy": {"within": 0}}]}, "greater than 0"),
        ({"variants": [FP32, MIXED | {"accuracy": {"within": "half"}}]}, "should be 'margin'"),
        (
            {"variants": [FP32, {"name": "p", "method": "ptq", "engine": "openvino", "rounding": "adaround"}]},
            "rounding is offered on engine inductor, triton only",
        ),
        (
            {
                "variants": [FP32, {"name": "q", "method": "qat", "engine": "inductor", "rounding": "adaround"}],
                "sweep": {},
            },
            "rounding belongs to ptq",
        ),
        ({"sweep": {"trials": 1, "weight_bits": [8, 4]}}, "fewer than the weight widths"),
        ({"data": {"split_fractions": [0.5, 0.5, 0.5]}}, "must sum to 1"),
        ({"model": {"weights": "imagenet", "width": 16}}, "only for width: 64"),
        ({"verdict": {"margin": 0}}, "greater than 0"),
        ({"verdict": {"moved": 0}}, "greater than 0"),
        ({"verdict": {"thresholds": [float("nan")]}}, "finite"),
        ({"training": {"lr": float("nan")}}, "finite"),
        ({"name": "../x"}, "pattern"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_with_its_reason(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        study(**changes)


@pytest.mark.parametrize("thresholds", [[], [2.5]])
def test_thresholds_are_the_studys_own(thresholds: list[float]) -> None:
    assert study(verdict={"thresholds": thresholds}).verdict.thresholds == tuple(thresholds)


def test_the_control_of_4_bit_qat_is_a_variant_of_its_own() -> None:
    control = {"name": "f4", "method": "finetune", "engine": "eager", "weight_bits": 4}
    assert study(variants=[FP32, control], sweep={}).variants[1].weight_bits == 4


@pytest.mark.parametrize("method", ["qat", "finetune"])
def test_a_width_that_the_sweep_does_not_try_is_refused(method: str) -> None:
    qat = {"name": "q", "method": method, "engine": "inductor", "weight_bits": 4}
    with pytest.raises(ValidationError, match=r"not in sweep\.weight_bits"):
        study(variants=[FP32, qat], sweep={"trials": 1, "weight_bits": [8]})


def test_the_reference_is_fp32_eager_whatever_its_name_and_place() -> None:
    other = {"name": "fast", "method": "fp32", "engine": "openvino"}
    assert study(variants=[other, FP32 | {"name": "plain"}]).reference.name == "plain"


def test_uniform_clips_are_evaluated_on_one_window() -> None:
    assert study(clip={"sampling": "uniform", "eval_windows": 3}).clip.windows == 1


def test_a_build_depends_on_how_weights_are_rounded_only_where_that_is_chosen() -> None:
    plain = Variant(name="p", method="ptq", engine="inductor")
    learned = plain.model_copy(update={"rounding": "adaround"})
    assert learned.settings() == plain.settings() | {"rounding": "adaround"}
    assert not {"name", "rounding"} & set(plain.settings())


def test_a_variant_defaults_to_8_bits_of_weight() -> None:
    assert Variant(name="p", method="ptq", engine="openvino").weight_bits == 8
