"""`qray::int8_conv2d` on NVIDIA GPUs of compute capability 8.0 and more: an implicit matrix product in Triton.

Of a tile of outputs (rows: image and position; columns: channels) a program gathers the inputs under the kernel as it
multiplies, with nothing laid out before. Padding is loaded as zero, which keeps both operands in shared memory; what
that is off by is in the correction. Sums are of int32, hence exact in any order.
"""

# What Triton compiles bears no types of Python.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qray.engines.int8_conv import HIGH, LOW, check, most_cut, out_sizes

#: 1.5 * 2**23: a float32 that is added to it and subtracted again is rounded to an integer, half to even, up to 2**22.
ROUNDER = tl.constexpr(12582912.0)
#: Beyond all codes, and well within what `ROUNDER` rounds.
FAR = tl.constexpr(1048576.0)
LOWEST, HIGHEST = tl.constexpr(LOW), tl.constexpr(HIGH)


@dataclass(frozen=True)
class Tile:
    """What a program computes at once: `m` positions by `n` channels, `k` products deep. splits: programs that share
    the products of one tile, whose sums another kernel adds."""

    m: int
    n: int
    k: int
    warps: int
    stages: int = 3
    splits: int = 1

    @property
    def options(self) -> dict[str, int | bool]:
        """Of Triton's compiler. A fused multiply-add would round once where the reference rounds twice."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}


#: Of matrix products, the first whose positions are no more than there are. Estimates: no GPU has swept them.
TILES = ((8192, Tile(128, 128, 64, 8)), (2048, Tile(128, 64, 64, 4)), (0, Tile(64, 32, 64, 4)))
#: Programs below which a GPU would be idle in part (an H100 has 132 multiprocessors), so that products are split; most
#: parts, and the least steps of each. Estimates too.
BUSY, MOST_SPLITS, LEAST_STEPS = 132, 8, 2
#: Of the kernel that adds such sums.
ADDED = Tile(32, 64, 1, 4)
#: Of convolutions of each channel by itself: positions and channels of a program.
DEPTHWISE = Tile(32, 64, 1, 4)
#: Least rows, columns and depth of a product of INT8 on tensor cores.
LEAST = (16, 16, 32)


@triton.jit
def _finish(
    sums, m, channel, valid, y0, x0,
    scale, bias, correction, residual, out, residual_scale, residual_zero, low, high, inverse, out_zero, height, width,
    channels, kernel_h: tl.constexpr, kernel_w: tl.constexpr, dilation_h: tl.constexpr, dilation_w: tl.constexpr,
    cut_h: tl.constexpr, cut_w: tl.constexpr, has_residual: tl.constexpr, has_low: tl.constexpr,
    has_high: tl.constexpr, quantizes: tl.constexpr,
):  # fmt: skip
    """Of int32 sums, what is stored: m (M, 1) positions, channel (1, N), y0 and x0 (M, 1) of each kernel's corner."""
    top = tl.minimum(tl.maximum((dilation_h - 1 - y0) // dilation_h, 0), cut_h)
    left = tl.minimum(tl.maximum((dilation_w - 1 - x0) // dilation_w, 0), cut_w)
    bottom = tl.maximum(y0 + dilation_h * kernel_h - height, 0) // dilation_h
    right = tl.maximum(x0 + dilation_w * kernel_w - width, 0) // dilation_w
    bottom, right = tl.minimum(bottom, cut_h), tl.minimum(right, cut_w)
    index = ((top * (cut_h + 1) + bottom) * (cut_w + 1) + left) * (cut_w + 1) + right
    sums += tl.load(correction + index * channels + channel, mask=valid, other=0)
    inside = channel < channels
    y = sums.to(tl.float32) * tl.load(scale + channel, mask=inside, other=0.0)
    y = y + tl.load(bias + channel, mask=inside, other=0.0)
    at = m.to(tl.int64) * channels + channel
    if has_residual:
        codes = tl.load(residual + at, mask=valid, other=0).to(tl.int32)
        y = y + (codes - residual_zero).to(tl.float32) * residual_scale
    if has_low:
        y = tl.maximum(y, low)
    if has_high:
        y = tl.minimum(y, high)
    if quantizes:
        y = tl.minimum(tl.maximum(y * inverse, -FAR), FAR)
        codes = ((y + ROUNDER) - ROUNDER).to(tl.int32) + out_zero
        tl.store(out + at, tl.minimum(tl.maximum(codes, LOWEST), HIGHEST).to(tl.int8), mask=valid)
    else:
        tl.store(out + at, y, mask=valid)


@triton.jit
def product(
    x, weight, scale, bias, correction, residual, out, parts,
    residual_scale, residual_zero, low, high, inverse, out_zero, positions, height, width, out_height, out_width,
    in_channels: tl.constexpr, out_channels: tl.constexpr, groups: tl.constexpr,
    kernel_h: tl.constexpr, kernel_w: tl.constexpr, stride_h: tl.constexpr, stride_w: tl.constexpr,
    padding_h: tl.constexpr, padding_w: tl.constexpr, dilation_h: tl.constexpr, dilation_w: tl.constexpr,
    cut_h: tl.constexpr, cut_w: tl.constexpr, has_residual: tl.constexpr, has_low: tl.constexpr,
    has_high: tl.constexpr, quantizes: tl.constexpr, tile_m: tl.constexpr, tile_n: tl.constexpr, tile_k: tl.constexpr,
    splits: tl.constexpr,
):  # fmt: skip
    """x (B, H, W, C), weight (O, KH, KW, C / groups), residual and out (B, OH, OW, O), all contiguous; `positions` is
    B * OH * OW. Grid: tiles of positions, tiles of a group's channels, groups by `splits`. With several of those the
    sums of each are stored in `parts`, int32 (splits, positions, O), and nothing in `out`."""
    group, split = tl.program_id(2) // splits, tl.program_id(2) % splits
    m = tl.program_id(0) * tile_m + tl.arange(0, tile_m)
    n = tl.program_id(1) * tile_n + tl.arange(0, tile_n)
    depth: tl.constexpr = kernel_h * kernel_w * in_channels
    column, row = m % out_width, m // out_width
    y0, x0 = (row % out_height) * stride_h - padding_h, column * stride_w - padding_w
    image = (row // out_height).to(tl.int64) * height * width
    sums = tl.zeros((tile_m, tile_n), tl.int32)
    each: tl.constexpr = (depth + tile_k * splits - 1) // (tile_k * splits) * tile_k
    for step in range(0, each, tile_k):
        k = split * each + step + tl.arange(0, tile_k)
        tap, c = k // in_channels, k % in_channels
        y = y0[:, None] + (tap // kernel_w)[None, :] * dilation_h
        z = x0[:, None] + (tap % kernel_w)[None, :] * dilation_w
        lies = (y >= 0) & (y < height) & (z >= 0) & (z < width) & (m < positions)[:, None] & (k < depth)[None, :]
        at = (image[:, None] + y * width + z) * (in_channels * groups) + group * in_channels + c[None, :]
        left = tl.load(x + at, mask=lies, other=0)
        rows = (group * out_channels + n)[None, :] * depth
        right = tl.load(weight + rows + k[:, None], mask=(n < out_channels)[None, :] & (k < depth)[:, None], other=0)
        sums = tl.dot(left, right, sums, out_dtype=tl.int32)
    channel = (group * out_channels + n)[None, :]
    valid = (m < positions)[:, None] & (n < out_channels)[None, :]
    if splits > 1:
        at = (split * positions + m).to(tl.int64)[:, None] * (out_channels * groups) + channel
        tl.store(parts + at, sums, mask=valid)
    else:
        _finish(
            sums, m[:, None], channel, valid, y0[:, None], x0[:, None],
            scale, bias, correction, residual, out, residual_scale, residual_zero, low, high, inverse, out_zero,
            height, width, out_channels * groups, kernel_h, kernel_w, dilation_h, dilation_w, cut_h, cut_w,
            has_residual, has_low, has_high, quantizes,
        )  # fmt: skip


@triton.jit
def added(
    scale, bias, correction, residual, out, parts, residual_scale, residual_zero, low, high, inverse, out_zero,
    positions, height, width, out_height, out_width, channels: tl.constexpr,
    kernel_h: tl.constexpr, kernel_w: tl.constexpr, stride_h: tl.constexpr, stride_w: tl.constexpr,
    padding_h: tl.constexpr, padding_w: tl.constexpr, dilation_h: tl.constexpr, dilation_w: tl.constexpr,
    cut_h: tl.constexpr, cut_w: tl.constexpr, has_residual: tl.constexpr, has_low: tl.constexpr,
    has_high: tl.constexpr, quantizes: tl.constexpr, tile_m: tl.constexpr, tile_n: tl.constexpr, splits: tl.constexpr,
):  # fmt: skip
    """What `product` left in `parts`, added and finished as it would have done. Grid: tiles of positions and of
    channels."""
    m = (tl.program_id(0) * tile_m + tl.arange(0, tile_m))[:, None]
    channel = (tl.program_id(1) * tile_n + tl.arange(0, tile_n))[None, :]
    column, row = m % out_width, m // out_width
    y0, x0 = (row % out_height) * stride_h - padding_h, column * stride_w - padding_w
    valid = (m < positions) & (channel < channels)
    sums = tl.zeros((tile_m, tile_n), tl.int32)
    for split in tl.static_range(splits):
        at = (split * positions + m).to(tl.int64) * channels + channel
        sums += tl.load(parts + at, mask=valid, other=0)
    _finish(
        sums, m, channel, valid, y0, x0,
        scale, bias, correction, residual, out, residual_scale, residual_zero, low, high, inverse, out_zero, height,
        width, channels, kernel_h, kernel_w, dilation_h, dilation_w, cut_h, cut_w, has_residual, has_low, has_high,
        quantizes,
    )  # fmt: skip


@triton.jit
def depthwise(
    x, weight, scale, bias, correction, residual, out, residual_scale, residual_zero, low, high, inverse, out_zero,
    positions, height, width, out_height, out_width, channels: tl.constexpr,
    kernel_h: tl.constexpr, kernel_w: tl.constexpr, stride_h: tl.constexpr, stride_w: tl.constexpr,
    padding_h: tl.constexpr, padding_w: tl.constexpr, dilation_h: tl.constexpr, dilation_w: tl.constexpr,
    cut_h: tl.constexpr, cut_w: tl.constexpr, has_residual: tl.constexpr, has_low: tl.constexpr,
    has_high: tl.constexpr, quantizes: tl.constexpr, tile_m: tl.constexpr, tile_n: tl.constexpr,
):  # fmt: skip
    """As `product`, of as many groups as channels: no matrices, so that tensor cores have nothing to multiply. weight
    (O, KH, KW)."""
    m = (tl.program_id(0) * tile_m + tl.arange(0, tile_m))[:, None]
    channel = (tl.program_id(1) * tile_n + tl.arange(0, tile_n))[None, :]
    column, row = m % out_width, m // out_width
    y0, x0 = (row % out_height) * stride_h - padding_h, column * stride_w - padding_w
    image = (row // out_height).to(tl.int64) * height * width
    valid = (m < positions) & (channel < channels)
    sums = tl.zeros((tile_m, tile_n), tl.int32)
    for tap in tl.static_range(kernel_h * kernel_w):
        y, z = y0 + (tap // kernel_w) * dilation_h, x0 + (tap % kernel_w) * dilation_w
        lies = valid & (y >= 0) & (y < height) & (z >= 0) & (z < width)
        left = tl.load(x + (image + y * width + z) * channels + channel, mask=lies, other=0)
        right = tl.load(weight + channel * (kernel_h * kernel_w) + tap, mask=channel < channels, other=0)
        sums += left.to(tl.int32) * right.to(tl.int32)
    _finish(
        sums, m, channel, valid, y0, x0,
        scale, bias, correction, residual, out, residual_scale, residual_zero, low, high, inverse, out_zero, height,
        width, channels, kernel_h, kernel_w, dilation_h, dilation_w, cut_h, cut_w, has_residual, has_low, has_high,
        quantizes,
    )  # fmt: skip


def tile_of(positions: int, channels: int, depth: int, groups: int = 1) -> Tile:
    """The tile for so many positions, channels of a group, and products of each: no larger than what there is, and
    split where there would be too few."""
    tile = next(tile for least, tile in TILES if positions >= least)
    at_most = [
        max(least, triton.next_power_of_2(n)) for least, n in zip(LEAST, (positions, channels, depth), strict=True)
    ]
    m, n, k = (min(size, most) for size, most in zip((tile.m, tile.n, tile.k), at_most, strict=True))
    programs = triton.cdiv(positions, m) * triton.cdiv(channels, n) * groups
    splits = max(1, min(MOST_SPLITS, BUSY // programs, triton.cdiv(depth, k) // LEAST_STEPS))
    return Tile(m, n, k, tile.warps, tile.stages, splits)


def launch(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, correction: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    residual: Tensor | None = None, residual_scale: float = 1.0, residual_zero: int = 0,
    low: float | None = None, high: float | None = None, out_scale: float | None = None, out_zero: int = 0,
    tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """`int8_conv.int8_conv2d` on the device of its tensors. tile: by default `tile_of` the convolution.

    Raises:
        ValueError: as `int8_conv.check`.
    """
    check(x, weight, scale, bias, correction, stride, padding, dilation, groups, residual)
    batch, in_channels, height, width = x.shape
    out_channels, per_group, kernel_h, kernel_w = weight.shape
    rows, columns = out_sizes((height, width), (kernel_h, kernel_w), stride, padding, dilation)
    dtype, order = torch.float32 if out_scale is None else torch.int8, torch.channels_last
    out = torch.empty((batch, out_channels, rows, columns), dtype=dtype, device=x.device, memory_format=order)
    # No copies, of what this operator gave and of weights as `channels_last` left them.
    x, weight = x.contiguous(memory_format=order), weight.contiguous(memory_format=order)
    if not (positions := batch * rows * columns):
        return out
    epilogue = (
        scale.contiguous(), bias.contiguous(), correction.contiguous(),
        out if residual is None else residual.contiguous(memory_format=order), out,
    )  # fmt: skip
    sizes = (
        residual_scale, residual_zero, 0.0 if low is None else low, 0.0 if high is None else high,
        1.0 if out_scale is None else 1.0 / out_scale, out_zero, positions, height, width, rows, columns,
    )  # fmt: skip
    geometry = {
        "kernel_h": kernel_h, "kernel_w": kernel_w, "stride_h": stride[0], "stride_w": stride[1],
        "padding_h": padding[0], "padding_w": padding[1], "dilation_h": dilation[0], "dilation_w": dilation[1],
        "cut_h": most_cut(kernel_h, padding[0], dilation[0]), "cut_w": most_cut(kernel_w, padding[1], dilation[1]),
        "has_residual": residual is not None, "has_low": low is not None, "has_high": high is not None,
        "quantizes": out_scale is not None,
    }  # fmt: skip
    if groups == in_channels == out_channels:
        tile = tile or DEPTHWISE
        tiles = triton.cdiv(positions, tile.m), triton.cdiv(out_channels, tile.n)
        depthwise[tiles](x, weight, *epilogue, *sizes, channels=out_channels, **geometry, tile_m=tile.m, tile_n=tile.n,
                         **tile.options)  # fmt: skip
        return out
    channels = out_channels // groups
    tile = tile or tile_of(positions, channels, per_group * kernel_h * kernel_w, groups)
    grid = (triton.cdiv(positions, tile.m), triton.cdiv(channels, tile.n), groups * tile.splits)
    whole = tile.splits == 1
    parts = out if whole else torch.empty((tile.splits, positions, out_channels), dtype=torch.int32, device=x.device)
    product[grid](
        x, weight, *epilogue, parts, *sizes, in_channels=per_group, out_channels=channels, groups=groups, **geometry,
        tile_m=tile.m, tile_n=tile.n, tile_k=tile.k, splits=tile.splits, **tile.options,
    )  # fmt: skip
    if not whole:
        tiles = triton.cdiv(positions, ADDED.m), triton.cdiv(out_channels, ADDED.n)
        added[tiles](*epilogue, parts, *sizes, channels=out_channels, **geometry, tile_m=ADDED.m, tile_n=ADDED.n,
                     splits=tile.splits, **ADDED.options)  # fmt: skip
    return out
