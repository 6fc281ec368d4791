"""`qray::int8_conv2d` is, to the last bit, what integers say it is: by its reference on the CPU, and by its kernel, in
Triton's interpreter and in what Triton compiles."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as drawing
from hypothesis import settings
from hypothesis import strategies as st
from support.int8_convolutions import CASES, Case, arguments, drawn, wanted

from qray.engines.int8_conv import int8_conv2d
from qray.engines.int8_conv_triton import TILES, Tile, added, depthwise, launch, product, tile_of


def check(case: Case, seed: int = 0) -> None:
    given = arguments(case, seed)
    found = int8_conv2d(**given)
    np.testing.assert_array_equal(found.numpy(), wanted(case, given))
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_exact(name: str) -> None:
    check(CASES[name])


@settings(max_examples=60, deadline=None)
@drawing(st.integers(0, 2**31), st.integers(0, 2**31))
def test_the_reference_is_exact_whatever_the_shape(shape: int, codes: int) -> None:
    check(drawn(torch.Generator().manual_seed(shape)), codes)


def test_results_reach_both_ends_of_their_range_and_much_between() -> None:
    """Or else equality would say little."""
    found = np.unique(int8_conv2d(**arguments(CASES["depthwise, 5 x 5 of every second"])).numpy())
    assert (found.min(), found.max()) == (-128, 127)
    assert len(found) > 200


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"correction": torch.zeros(1, 48, dtype=torch.int32)}, r"correction is torch.int32 \(1, 48\)"),
        ({"residual": torch.zeros(3, 48, 7, 4, dtype=torch.int8)}, r"residual is torch.int8 \(3, 48, 7, 4\)"),
        ({"scale": torch.ones(47)}, r"scale is torch.float32 \(47,\)"),
        ({"bias": torch.ones(48, dtype=torch.float64)}, "bias is torch.float64"),
        ({"x": torch.zeros(3, 32, 7, 5)}, "x is torch.float32"),
        ({"x": torch.zeros(3, 31, 7, 5, dtype=torch.int8)}, "31 channels in 1 groups"),
        ({"groups": 0}, "at least 1"),
        ({"stride": (1,)}, "2 numbers"),
    ],
)
def test_what_a_kernel_would_read_past_the_end_of_is_refused(changes: dict[str, Any], words: str) -> None:
    """A program may be a stranger's."""
    given = arguments(CASES["3 x 3 and a residual"]) | changes
    for call in (int8_conv2d, launch):
        with pytest.raises(ValueError, match=words):
            call(**given)


@pytest.mark.parametrize("name", ["3 x 3 and a residual", "in float", "depthwise"])
def test_it_is_an_operator_as_pytorch_wants_them(name: str) -> None:
    given = arguments(CASES[name])
    torch.library.opcheck(int8_conv2d, (), given)


def test_the_kernel_is_exact_in_the_interpreter() -> None:
    """In a process of its own: what is interpreted is settled when Triton is imported, and nothing exports there."""
    seeds = [str(seed) for seed in range(12)]
    done = subprocess.run(
        [sys.executable, "-m", "support.int8_convolutions", *seeds], capture_output=True, text=True, timeout=600,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(": equal, ") == len(CASES) + len(seeds)


POINTERS = {"x": "*i8", "weight": "*i8", "scale": "*fp32", "bias": "*fp32", "correction": "*i32", "residual": "*i8",
            "out": "*i8", "parts": "*i32"}  # fmt: skip
NUMBERS = dict.fromkeys(("residual_scale", "low", "high", "inverse"), "fp32") | dict.fromkeys(
    ("residual_zero", "out_zero", "positions", "height", "width", "out_height", "out_width"), "i32"
)
#: Of a 3 x 3 convolution with all that can follow it.
SIZES = {"kernel": 3, "stride": 1, "padding": 1, "dilation": 1, "cut": 1}
GEOMETRY = {f"{what}_{axis}": size for what, size in SIZES.items() for axis in "hw"} | dict.fromkeys(
    ("has_residual", "has_low", "has_high", "quantizes"), True
)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


def compiled(kernel: object, capability: int, tile: Tile, **constants: int) -> str:
    """PTX, without a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names  # type: ignore[attr-defined]
    constants = {**constants, **GEOMETRY, "tile_m": tile.m, "tile_n": tile.n, "tile_k": tile.k, "splits": tile.splits}
    constants = {name: value for name, value in constants.items() if name in names}
    given = {name: kind for name, kind in (POINTERS | NUMBERS).items() if name in names}
    source = ASTSource(
        fn=kernel, signature=given | dict.fromkeys(constants, "constexpr"),
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in POINTERS if name in names},
    )  # fmt: skip
    return str(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=tile.options).asm["ptx"])


@pytest.mark.parametrize("tile", [*(tile for _, tile in TILES), replace(TILES[-1][1], splits=8)], ids=str)
@pytest.mark.parametrize(
    ("capability", "instruction"),
    [(80, r"mma\.sync\.aligned\.m16n8k32\.row\.col\.satfinite\.s32\.s8\.s8\.s32"),
     (90, r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k32\.s32\.s8\.s8")],
)  # fmt: skip
def test_tensor_cores_multiply_int8(capability: int, instruction: str, tile: Tile) -> None:
    ptx = compiled(product, capability, tile, in_channels=64, out_channels=64, groups=1)
    products = set(re.findall(r"\b(?:wg)?mma\.(?:sync|mma_async)\S*", ptx))
    assert products
    assert all(re.fullmatch(instruction, each) for each in products), products
    # Both operands reach shared memory while the ones before are multiplied.
    assert "cp.async" in ptx
    # A product and a sum that are one would be rounded once.
    assert "fma.rn.f32" not in ptx


@pytest.mark.parametrize("capability", [80, 90])
def test_sums_of_parts_are_added_as_integers(capability: int) -> None:
    ptx = compiled(added, capability, Tile(32, 64, 1, 4, splits=8), channels=96)
    assert "add.s32" in ptx
    assert "fma.rn.f32" not in ptx


@pytest.mark.parametrize("capability", [80, 90])
def test_depthwise_convolutions_compile_to_integers_too(capability: int) -> None:
    ptx = compiled(depthwise, capability, Tile(32, 64, 1, 4), channels=96)
    assert re.search(r"\bmad\.lo\.s32|\bmul\.lo\.s32|\bdp4a|\bmul\.wide\.s16|\bmul\.lo\.s16", ptx)
    assert "fma.rn.f32" not in ptx


def test_a_tile_is_no_larger_than_what_there_is_and_no_smaller_than_can_be_multiplied() -> None:
    assert tile_of(100_000, 512, 4608) == TILES[0][1]
    assert (tile_of(3, 1, 9).m, tile_of(3, 1, 9).n, tile_of(3, 1, 9).k) == (16, 16, 32)
    assert tile_of(5000, 20, 147).n == 32


def test_products_are_split_where_there_would_be_too_few_programs_and_each_part_is_worth_it() -> None:
    # The last stage of ResNet-18, of a clip and of 64.
    assert tile_of(8 * 4 * 4, 512, 4608).splits == 4
    assert tile_of(64 * 8 * 4 * 4, 512, 4608).splits == 1
    assert tile_of(10, 16, 64).splits == 1


@pytest.mark.slow
def test_what_a_machine_with_a_gpu_is_to_run_runs(tmp_path: Path) -> None:
    """On the CPU, in the interpreter, where its times mean nothing."""
    program = Path(__file__).parents[2] / "gpu" / "measure.py"
    done = subprocess.run(
        [sys.executable, program, "--device", "cpu", "--minutes", "1", "--to", tmp_path / "gpu.json"],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert set(found["ceilings"]) >= {"copy_gb_s", "fp16_tera_s", "int8_tera_s"}
    assert all(found["exact"].values())
    assert len(found["exact"]) > len(CASES)
    assert "skipped" in found["tests"]
    assert found["16 channels, 1 clips"]["taken"] in found["16 channels, 1 clips"]["ms"]
