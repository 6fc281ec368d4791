"""Convolutions of INT8 as networks have them, and odder ones; and what they are, computed in Python's integers.

As a program it computes them by the Triton kernel, in Triton's interpreter (TRITON_INTERPRET=1), which no process may
have that exports: python -m support.int8_convolutions SEED...
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qray.engines.int8_conv import corrections


@dataclass(frozen=True)
class Case:
    """A convolution: (B, C, H, W) codes by (O, C / groups, KH, KW), and what comes after it."""

    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    residual: bool = False
    low: float | None = None
    high: float | None = None
    quantizes: bool = True
    zero: int = -128


CASES = {
    "the first of a ResNet": Case((2, 3, 17, 13), (24, 3, 7, 7), (2, 2), (3, 3), low=0.0, zero=-14),
    "3 x 3": Case((1, 40, 9, 11), (33, 40, 3, 3), padding=(1, 1), low=0.0),
    "3 x 3 and a residual": Case((3, 32, 7, 5), (48, 32, 3, 3), padding=(1, 1), residual=True, low=0.0),
    "deep": Case((1, 512, 3, 3), (20, 512, 3, 3), padding=(1, 1), residual=True),
    "1 x 1, of every second": Case((2, 64, 7, 7), (96, 64, 1, 1), (2, 2), zero=5),
    "in float": Case((1, 24, 6, 6), (16, 24, 1, 1), quantizes=False),
    "depthwise": Case((2, 72, 9, 8), (72, 1, 3, 3), padding=(1, 1), groups=72, low=0.0, high=6.0),
    "depthwise, 5 x 5 of every second": Case((1, 33, 11, 10), (33, 1, 5, 5), (2, 2), (2, 2), groups=33, residual=True),
    "grouped": Case((1, 24, 8, 8), (36, 8, 3, 3), padding=(1, 1), groups=3, low=0.0),
    "more channels of each": Case((1, 6, 8, 8), (12, 1, 3, 3), padding=(1, 1), groups=6),
    "dilated, with more padding at the sides": Case((1, 20, 12, 15), (17, 20, 3, 2), (1, 2), (2, 3), (3, 2)),
    "padded by more than its kernel": Case((1, 16, 4, 3), (16, 16, 3, 3), padding=(5, 4), zero=77),
    "an image smaller than the kernel": Case((2, 8, 2, 1), (8, 8, 5, 5), padding=(2, 2), quantizes=False, zero=-3),
}  # fmt: skip


def drawn(generator: torch.Generator) -> Case:
    """Any convolution."""

    def one(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    groups, per_group, of_each = one(1, 3), one(1, 40), one(1, 24)
    kernel, dilation, padding = ((one(1, 5), one(1, 4)), (one(1, 3), one(1, 2)), (one(0, 4), one(0, 3)))
    size = [max(d * (k - 1) + 1 - 2 * p, 1) + one(0, 9) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    return Case(
        (one(1, 3), groups * per_group, *size), (groups * of_each, per_group, *kernel), (one(1, 3), one(1, 2)), padding,
        dilation, groups, bool(one(0, 1)), (None, 0.0)[one(0, 1)], (None, 6.0)[one(0, 1)], bool(one(0, 3)),
        one(-128, 127),
    )  # fmt: skip


def arguments(case: Case, seed: int = 0) -> dict[str, Any]:
    """Of `int8_conv2d`: codes of the whole range, and scales by which results reach all of theirs."""
    generator = torch.Generator().manual_seed(seed)

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)

    x, weight = codes(*case.x), codes(*case.weight)
    depth = weight[0].numel()
    scale = (1 + 2 * torch.rand(len(weight), generator=generator)) / (74 * 105 * depth**0.5)
    found: dict[str, Any] = {
        "x": x, "weight": weight, "scale": scale, "bias": torch.randn(len(weight), generator=generator),
        "correction": corrections(weight, case.zero, case.padding, case.dilation),
        "stride": case.stride, "padding": case.padding, "dilation": case.dilation, "groups": case.groups,
        "low": case.low, "high": case.high,
    }  # fmt: skip
    if case.residual:
        sizes = (n + 2 * p - d * (k - 1) - 1 for n, p, d, k in zip(
            case.x[2:], case.padding, case.dilation, case.weight[2:], strict=True))  # fmt: skip
        rows, columns = (n // s + 1 for n, s in zip(sizes, case.stride, strict=True))
        found |= {"residual": codes(case.x[0], len(weight), rows, columns), "residual_scale": 0.013, "residual_zero": 9}
    return found | ({"out_scale": 0.031, "out_zero": -17} if case.quantizes else {})


def wanted(case: Case, given: dict[str, Any]) -> np.ndarray:
    """What `int8_conv2d` gives: integers until they are scaled, from a loop over the kernel's taps."""
    x, weight = given["x"].numpy().astype(np.int64) - case.zero, given["weight"].numpy().astype(np.int64)
    batch, _, height, width = case.x
    outs, per_group, kernel_h, kernel_w = case.weight
    (pad_h, pad_w), (step_h, step_w), (far_h, far_w) = case.padding, case.stride, case.dilation
    padded = np.pad(x, ((0, 0), (0, 0), (pad_h, pad_h), (pad_w, pad_w)))
    rows = (height + 2 * pad_h - far_h * (kernel_h - 1) - 1) // step_h + 1
    columns = (width + 2 * pad_w - far_w * (kernel_w - 1) - 1) // step_w + 1
    sums = np.zeros((batch, outs, rows, columns), np.int64)
    for group in range(case.groups):
        mine = slice(group * per_group, (group + 1) * per_group)
        its = slice(group * outs // case.groups, (group + 1) * outs // case.groups)
        for i in range(kernel_h):
            for j in range(kernel_w):
                y, z = i * far_h, j * far_w
                seen = padded[
                    :, mine, y : y + step_h * (rows - 1) + 1 : step_h, z : z + step_w * (columns - 1) + 1 : step_w
                ]
                sums[:, its] += np.einsum("bchw,oc->bohw", seen, weight[its, :, i, j])
    single = np.float32
    y = sums.astype(single) * given["scale"].numpy()[:, None, None] + given["bias"].numpy()[:, None, None]
    if case.residual:
        codes = given["residual"].numpy().astype(np.int64) - given["residual_zero"]
        y = y + codes.astype(single) * single(given["residual_scale"])
    if case.low is not None or case.high is not None:
        y = np.clip(y, case.low, case.high).astype(single)
    if not case.quantizes:
        return y
    codes = np.rint(y * single(1.0 / given["out_scale"])).astype(np.int64) + given["out_zero"]
    return np.clip(codes, -128, 127).astype(np.int8)


def main(seeds: list[int]) -> None:
    """Compare the kernel with `wanted`, of all `CASES` and of as many others as there are seeds."""
    from qray.engines.int8_conv_triton import Tile, launch

    cases = [*CASES.items(), *((f"seed {seed}", drawn(torch.Generator().manual_seed(seed))) for seed in seeds)]
    for name, case in cases:
        given = arguments(case)
        for tile in (None, Tile(16, 16, 32, 4, splits=3)):
            found = launch(**given, tile=tile)
            np.testing.assert_array_equal(found.numpy(), wanted(case, given), err_msg=f"{name}, {tile}: {case}")
            assert found.is_contiguous(memory_format=torch.channels_last)
        print(f"{name}: equal, {found.numel()} values", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
