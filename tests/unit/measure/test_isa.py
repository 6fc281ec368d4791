"""What an instruction set needs, what can overflow on it, and what a user's restriction of it comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from qray.measure import host
from qray.measure.isa import BF16, INT8_DOT_PRODUCT, ISA_FLAGS, Machine, least_of, native_isa, range_is_reduced

VNNI = frozenset({"avx2", "fma", "avx512f", "avx512_vnni"})


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        (set(), "any"),
        ({"avx2", "fma"}, "avx2"),
        ({"avx2", "fma", "avx_vnni"}, "avx-vnni"),
        ({"avx2", "fma", "avx512f"}, "avx512"),
        (VNNI, "avx512-vnni"),
        (VNNI | {"amx_int8", "amx_tile"}, "amx"),
        ({"asimd"}, "neon"),
        ({"asimd", "asimddp"}, "neon-dotprod"),
    ],
)
def test_the_native_instruction_set_is_the_largest_that_a_cpu_has(flags: set[str], isa: str) -> None:
    assert native_isa(flags) == isa


def test_eight_bit_weights_keep_to_half_their_range_without_a_dot_product() -> None:
    reduced = {isa for isa in ISA_FLAGS if range_is_reduced(isa, 8)}
    assert reduced == {"any", "avx2", "avx512", "neon"}


def test_four_bit_weights_never_overflow() -> None:
    assert not any(range_is_reduced(isa, 4) for isa in ISA_FLAGS)


def test_a_cluster_is_the_least_of_its_nodes() -> None:
    nodes = [VNNI | {INT8_DOT_PRODUCT, BF16}, frozenset({"avx2", "fma", "f16c"})]
    assert least_of(nodes) == Machine("avx2", bf16=False)


@pytest.fixture
def sapphire(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A CPU with everything."""
    flags = "avx2 fma f16c avx_vnni avx512f avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16"
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n", encoding="utf-8")
    monkeypatch.setattr(host, "Path", lambda path: cpuinfo if path == "/proc/cpuinfo" else Path(path))


@pytest.mark.usefixtures("sapphire")
@pytest.mark.parametrize(
    ("limit", "isa"),
    [("", "amx"), ("AVX512_CORE_VNNI", "avx512-vnni"), ("avx512_core", "avx512"), ("AVX2", "avx2"), ("SSE41", "any")],
)
def test_what_onednn_is_told_not_to_use_is_as_good_as_not_there(
    monkeypatch: pytest.MonkeyPatch, limit: str, isa: str
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert native_isa() == isa
