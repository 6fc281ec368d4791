"""`qray::int8_conv2d`: a convolution of INT8 by INT8 with all that surrounds it in a quantized network.

An operator of `torch.library`, so that programs that call it export, save and load. Here are its schema, its meaning
(the CPU kernel, exact, for reference) and what a weight needs beside it; `int8_conv_triton` computes it on a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

#: Of signed codes. What is uint8 elsewhere is stored as the code less 128, and so is its zero point.
LOW, HIGH = -128, 127


@torch.library.custom_op("qray::int8_conv2d", mutates_args=(), device_types="cpu")
def int8_conv2d(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, correction: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    residual: Tensor | None = None, residual_scale: float = 1.0, residual_zero: int = 0,
    low: float | None = None, high: float | None = None, out_scale: float | None = None, out_zero: int = 0,
) -> Tensor:  # fmt: skip
    """Convolve, scale, add a bias and a residual, cut off and quantize, in this order.

    x: int8 (B, C, H, W) codes. weight: int8 (O, C / groups, KH, KW), symmetric. scale: float32 (O,), that of x times
    that of each channel's weights. bias: float32 (O,). correction: int32, of `corrections`. residual: int8, of the
    output's shape, with its scale and zero point. low, high: where the sum is cut off, as ReLU and ReLU6 do.

    Returns int8 (B, O, OH, OW) codes of `out_scale` and `out_zero`, rounded half to even; without `out_scale` float32.
    In either case channels are innermost in memory.

        y = float(sum(x * weight) + correction) * scale + bias + float(residual - residual_zero) * residual_scale

    Raises:
        ValueError: tensors are not of these types and shapes.
    """
    check(x, weight, scale, bias, correction, stride, padding, dilation, groups, residual)
    # Products are of at most 14 bits and float64 holds integers of 53, so that no sum of them is rounded.
    total = functional.conv2d(x.double(), weight.double(), None, stride, padding, dilation, groups)
    total = total.to(torch.int32) + _spread(correction, x.shape, weight.shape, stride, padding, dilation)
    y = total.float() * scale[:, None, None] + bias[:, None, None]
    if residual is not None:
        y = y + (residual.to(torch.int32) - residual_zero).float() * residual_scale
    if low is not None or high is not None:
        y = y.clamp(low, high)
    if out_scale is not None:
        codes = torch.round(y * (1.0 / out_scale)) + out_zero
        return codes.clamp(LOW, HIGH).to(torch.int8).contiguous(memory_format=torch.channels_last)
    return y.contiguous(memory_format=torch.channels_last)


@int8_conv2d.register_fake
def _(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, correction: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    residual: Tensor | None = None, residual_scale: float = 1.0, residual_zero: int = 0,
    low: float | None = None, high: float | None = None, out_scale: float | None = None, out_zero: int = 0,
) -> Tensor:  # fmt: skip
    rows, columns = out_sizes(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    dtype = torch.float32 if out_scale is None else torch.int8
    shape = (x.shape[0], weight.shape[0], rows, columns)
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


@int8_conv2d.register_kernel("cuda")
def _(*arguments: object, **named: object) -> Tensor:
    # Triton is imported where there is a GPU for it.
    from qray.engines.int8_conv_triton import launch

    return launch(*arguments, **named)  # type: ignore[arg-type]


def check(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, correction: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, residual: Tensor | None,
) -> None:  # fmt: skip
    """Refuse what a kernel would read past the end of.

    Raises:
        ValueError: a tensor is not of the type and shape that `int8_conv2d` says, or numbers make no convolution.
    """
    if x.dim() != 4 or weight.dim() != 4 or len(stride) != 2 or len(padding) != 2 or len(dilation) != 2:
        raise ValueError("int8_conv2d: x and weight have 4 dimensions, and stride, padding and dilation 2 numbers")
    if min(*stride, *dilation, groups) < 1 or min(padding) < 0:
        raise ValueError("int8_conv2d: stride, dilation and groups are at least 1, and padding at least 0")
    out, per_group, *kernel = weight.shape
    if per_group * groups != x.shape[1] or out % groups:
        raise ValueError(
            f"int8_conv2d: {x.shape[1]} channels in {groups} groups are not those of {tuple(weight.shape)}"
        )
    cuts = [most_cut(k, p, d) + 1 for k, p, d in zip(kernel, padding, dilation, strict=True)]
    shapes = {"scale": (out,), "bias": (out,), "correction": (cuts[0] ** 2 * cuts[1] ** 2, out)}
    dtypes = {"x": torch.int8, "weight": torch.int8, "scale": torch.float32, "bias": torch.float32,
              "correction": torch.int32, "residual": torch.int8}  # fmt: skip
    given = {"x": x, "weight": weight, "scale": scale, "bias": bias, "correction": correction}
    if residual is not None:
        given["residual"] = residual
        shapes["residual"] = (x.shape[0], out, *out_sizes(x.shape[2:], kernel, stride, padding, dilation))
    for name, tensor in given.items():
        shape = shapes.get(name, tuple(tensor.shape))
        if tensor.dtype != dtypes[name] or tuple(tensor.shape) != shape or tensor.device != x.device:
            raise ValueError(
                f"int8_conv2d: {name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, not {dtypes[name]} "
                f"{shape} on {x.device}"
            )


def out_sizes(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Rows and columns of the output."""
    each = zip(size, kernel, stride, padding, dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in each)


def most_cut(kernel: int, padding: int, dilation: int) -> int:
    """Taps of a kernel, along one axis, that padding can hide at either end."""
    return min(kernel, -(-padding // dilation))


def corrections(weight: Tensor, zero: int, padding: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """What makes a convolution of codes, padded with zeros, one of what the codes stand for, padded with zero: minus
    the zero point, times the weights that lie on the image.

    int32 (N, O), by how many taps are cut off at the top, bottom, left and right, the last counting fastest, each from
    0 to `most_cut`: (0, 0, 0, 0), where none is, comes first.
    """
    _, _, rows, columns = weight.shape
    cuts = [range(most_cut(k, p, d) + 1) for k, p, d in zip((rows, columns), padding, dilation, strict=True)]
    found = [
        weight[:, :, top : rows - bottom, left : columns - right].sum((1, 2, 3), dtype=torch.int32)
        for top, bottom, left, right in itertools.product(cuts[0], cuts[0], cuts[1], cuts[1])
    ]
    return -zero * torch.stack(found)


def _cuts(
    size: int, kernel: int, stride: int, padding: int, dilation: int, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """Taps that each output position along one axis lacks at its beginning and end, and one more than the most."""
    count, most = out_sizes([size], [kernel], [stride], [padding], [dilation])[0], most_cut(kernel, padding, dilation)
    first = torch.arange(count, device=device) * stride - padding
    last = first + dilation * (kernel - 1)
    before, after = -(first // dilation), (last - size + dilation) // dilation
    return before.clamp(0, most), after.clamp(0, most), most + 1


def _spread(
    correction: Tensor, shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """The correction of each output position: int32 (O, OH, OW)."""
    (top, bottom, many), (left, right, few) = (
        _cuts(shape[2 + axis], kernel[2 + axis], stride[axis], padding[axis], dilation[axis], correction.device)
        for axis in (0, 1)
    )
    index = ((top * many + bottom) * few * few)[:, None] + (left * few + right)[None]
    return correction[index].permute(2, 0, 1)
