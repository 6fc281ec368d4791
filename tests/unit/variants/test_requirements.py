"""A variant that this machine cannot build is known before work starts, with a reason."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from shelf import VARIANTS

from qray.errors import QrayError
from qray.measure import host
from qray.study import Variant
from qray.variants import inductor, onnxruntime, openvino
from qray.variants.artifact import Built
from qray.variants.registry import missing_requirement


@pytest.mark.parametrize("name", VARIANTS)
def test_this_machine_can_build_every_variant(name: str) -> None:
    assert missing_requirement(VARIANTS[name]) is None


def test_a_missing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C++ compiler (g++, clang++, c++) on PATH" in (missing_requirement(VARIANTS["ptq-inductor"]) or "")


def only_without(*missing: str):  # type: ignore[no-untyped-def]
    return lambda name: None if name in missing else ModuleSpec(name, None)


def test_a_missing_onnxruntime_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "find_spec", only_without("onnxruntime", "onnxscript"))
    reason = missing_requirement(VARIANTS["fp32-onnxruntime"])
    assert reason == "onnxscript, onnxruntime not installed: pip install 'qray[onnx]'"


def test_a_missing_nncf_is_a_reason_for_static_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "find_spec", only_without("nncf"))
    assert missing_requirement(VARIANTS["ptq-openvino"]) == "nncf not installed: pip install 'qray[openvino]'"


def test_fp32_needs_no_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "find_spec", only_without("nncf"))
    assert missing_requirement(VARIANTS["fp32-openvino"]) is None


def test_a_cpu_without_bf16_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cpu_flags", lambda: frozenset({"avx2", "avx512_vnni"}))
    variant = Variant(name="bf16", method="bf16", engine="openvino")
    assert "this CPU has no bf16 arithmetic" in (missing_requirement(variant) or "")


def test_a_package_for_another_cpu_is_refused_with_what_is_lacking(tmp_path: Path) -> None:
    built = Built("model.pt2", 0, 0.0, 0, {"cpu_flags": ["avx2", "made_up_isa"]})
    with pytest.raises(QrayError, match="compiled for a CPU with made_up_isa, which this one lacks"):
        inductor.load(tmp_path, built, 1)
