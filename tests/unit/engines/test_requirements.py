"""A variant that this machine cannot build is known before work starts, with a reason."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from support.networks import request
from support.shelf import VARIANTS, Shelf

from qray.engines import registry
from qray.engines.artifact import read_artifact, write_artifact_json
from qray.engines.layers import layers_of, races
from qray.engines.onnxruntime import session_options
from qray.engines.registry import build_artifact, load_artifact, missing_requirement
from qray.errors import QrayError
from qray.measure import host
from qray.measure.isa import INT8_DOT_PRODUCT
from qray.model.regressor import VideoRegressor
from qray.study import Model, Variant


@pytest.mark.parametrize("name", VARIANTS)
def test_this_machine_can_build_every_variant(name: str) -> None:
    assert missing_requirement(VARIANTS[name]) is None


def test_a_missing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C++ compiler (g++, clang++, c++) on PATH" in (missing_requirement(VARIANTS["ptq-inductor"]) or "")


def only_without(*missing: str):  # type: ignore[no-untyped-def]
    return lambda name: None if name in missing else ModuleSpec(name, None)


def test_a_missing_onnxruntime_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", only_without("onnxruntime", "onnxscript"))
    reason = missing_requirement(VARIANTS["fp32-onnxruntime"])
    assert reason == "onnxscript, onnxruntime not installed: pip install 'qray[onnx]'"


def test_a_missing_nncf_is_a_reason_for_static_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", only_without("nncf"))
    assert missing_requirement(VARIANTS["ptq-openvino"]) == "nncf not installed: pip install 'qray[openvino]'"


def test_fp32_needs_no_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", only_without("nncf"))
    assert missing_requirement(VARIANTS["fp32-openvino"]) is None


def test_a_cpu_without_bf16_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cpu_flags", lambda: frozenset({"avx2", "avx512_vnni"}))
    variant = Variant(name="bf16", method="bf16", engine="openvino")
    assert "this CPU has no bf16 arithmetic" in (missing_requirement(variant) or "")


def test_an_artifact_that_needs_more_than_this_cpu_has_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(shelf["ptq-onnxruntime"].folder, tmp_path / "artifact"))
    artifact = read_artifact(copied)
    write_artifact_json(replace(artifact, isa="avx512-vnni", built=replace(artifact.built, needs=("made_up_isa",))))
    with pytest.raises(QrayError, match=r"built for avx512-vnni, and this CPU lacks made_up_isa; .*target\.isa=any"):
        load_artifact(copied)


def test_int8_of_full_range_needs_a_dot_product(shelf: Shelf) -> None:
    """Whatever this machine is: what was built with reduced ranges runs anywhere, what was not says what it wants."""
    for name in ("ptq-onnxruntime", "ptq-openvino"):
        built = shelf[name].built
        assert (INT8_DOT_PRODUCT in built.needs) is not built.notes["reduce_range"]


def test_a_target_that_this_machine_is_not_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "cpu_flags", lambda: frozenset({"avx2", "fma"}))
    reason = missing_requirement(VARIANTS["ptq-onnxruntime"], "avx512-vnni")
    assert reason is not None
    assert "target.isa is avx512-vnni, and this machine lacks avx512_vnni, avx512f" in reason


def test_fp32_of_an_engine_of_its_own_runs_on_any_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "cpu_flags", lambda: frozenset())
    assert missing_requirement(VARIANTS["fp32-onnxruntime"], "avx512-vnni") is None


@pytest.mark.parametrize("name", ["ptq-inductor", "qat-inductor", "ptq-openvino"])
def test_an_artifact_whose_kernels_race_is_refused_on_several_threads(shelf: Shelf, name: str) -> None:
    with pytest.raises(QrayError, match=r"on several threads the INT8 kernels of .* load it with threads=1"):
        load_artifact(shelf[name], threads=2)


def test_engines_and_precisions_that_do_not_race_take_as_many_threads_as_they_are_given(shelf: Shelf) -> None:
    for name in ("fp32-inductor", "ptq-onnxruntime"):
        assert load_artifact(shelf[name], threads=2, allow_code=True)(shelf.clips).shape == (8,)


@pytest.mark.parametrize(("width", "racing"), [(4, True), (8, True), (16, False), (20, True), (64, False)])
def test_whole_blocks_of_channels_do_not_race(width: int, racing: bool) -> None:
    assert races(layers_of(VideoRegressor(Model(width=width)))) is racing


def test_weights_of_full_range_run_on_every_cpu_where_they_are_asked_for(shelf: Shelf, tmp_path: Path) -> None:
    """ONNX Runtime multiplies them as uint8 where they could overflow as int8: of this, here, that it is told so."""
    asked = VARIANTS["ptq-onnxruntime"].model_copy(update={"u8u8": True})
    built = build_artifact(replace(request(asked, shelf.model), isa="avx2"), "k", tmp_path / "k")
    halved = build_artifact(
        replace(request(VARIANTS["ptq-onnxruntime"], shelf.model), isa="avx2"), "k", tmp_path / "halved"
    )
    assert (built.built.notes["reduce_range"], halved.built.notes["reduce_range"]) == (False, True)
    assert built.built.needs == halved.built.needs == ()
    assert built.built.notes["quantization_rms"] < halved.built.notes["quantization_rms"]
    option = "session.x64quantprecision"
    assert session_options(1, u8u8=built.built.notes["u8u8"]).get_session_config_entry(option) == "1"
    assert session_options(1).get_session_config_entry(option) == "0"
