"""ONNX operators run by PyTorch.

Own code since no kept library serves: onnx2torch 1.5.15 reads neither what torch.onnx writes today (opset 20) nor its
older files of networks with folded batch-norms. Operators: https://onnx.ai/onnx/operators, those of convolutional
networks and of the arithmetic of shapes that exporters leave around them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

#: What a node computes, of its inputs (tensors, or arrays of sizes; None where left out) and its attributes.
Operator = Callable[..., Any]
OPERATORS: dict[str, Operator] = {}


class Unsupported(Exception):
    """An operator, or a form of one, that is not here."""


def _operator(*names: str) -> Callable[[Operator], Operator]:
    def add(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return add


def _both(host: Callable[..., Any], device: Callable[..., Any]) -> Operator:
    """Sizes are computed apart from tensors, so that a free number of clips stays free."""

    def run(a: SimpleNamespace, *values: Any) -> Any:
        if not any(isinstance(value, Tensor) for value in values):
            return np.asarray(host(*values), dtype=object)
        return device(*(_tensor(value) for value in values))

    return run


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.item() if value.ndim == 0 else torch.tensor(value.tolist())
    return value


def _ints(value: Any) -> list[Any]:
    """A list of sizes, whether it came as an attribute or as a value."""
    if isinstance(value, Tensor):
        return [int(each) for each in value.flatten().tolist()]
    return [int(v) if isinstance(v, int | float | np.integer) else v for v in np.asarray(value, object).ravel()]


for _name, _host, _device in (
    ("Add", operator.add, torch.add), ("Sub", operator.sub, torch.sub), ("Mul", operator.mul, torch.mul),
    ("Pow", operator.pow, torch.pow), ("Equal", operator.eq, torch.eq), ("Max", np.maximum, torch.maximum),
    ("Min", np.minimum, torch.minimum),
):  # fmt: skip
    OPERATORS[_name] = _both(_host, _device)
OPERATORS["Div"] = _both(lambda x, y: np.floor_divide(x, y), torch.div)
for _name, _function in {
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "HardSwish": F.hardswish, "Mish": F.mish,
    "Erf": torch.erf, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Neg": torch.neg, "Abs": torch.abs,
    "Reciprocal": torch.reciprocal, "Softplus": F.softplus, "Identity": lambda x: x,
}.items():  # fmt: skip
    OPERATORS[_name] = lambda a, x, f=_function: f(x)
#: In evaluation nothing is dropped.
OPERATORS["Dropout"] = lambda a, x, *rest: x
OPERATORS["PRelu"] = lambda a, x, slope: torch.where(x < 0, x * slope, x)
OPERATORS["LeakyRelu"] = lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01))
OPERATORS["Elu"] = lambda a, x: F.elu(x, a.get("alpha", 1.0))
OPERATORS["Gelu"] = lambda a, x: F.gelu(x, approximate=a.get("approximate", "none"))
OPERATORS["Softmax"] = lambda a, x: torch.softmax(x, a.get("axis", -1))
OPERATORS["MatMul"] = lambda a, x, y: torch.matmul(x, y)
OPERATORS["Where"] = lambda a, c, x, y: torch.where(*map(_tensor, (c, x, y)))
OPERATORS["Cast"] = lambda a, x: x.float() if isinstance(x, Tensor) and not x.is_floating_point() else x
OPERATORS["Shape"] = lambda a, x: np.array(list(x.shape), dtype=object)[a.get("start", 0) : a.get("end")]
OPERATORS["Expand"] = lambda a, x, shape: x * torch.ones(_ints(shape))
OPERATORS["ConstantOfShape"] = lambda a, shape: torch.full(_ints(shape), float(np.ravel(a.get("value", [0.0]))[0]))


@_operator("HardSigmoid")
def _hard_sigmoid(a: Any, x: Tensor) -> Tensor:
    alpha, beta = a.get("alpha", 0.2), a.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-4) and beta == 0.5:
        return F.hardsigmoid(x)
    return (x * alpha + beta).clamp(0, 1)


@_operator("Clip")
def _clip(a: Any, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    bounds = [a.get(name) if value is None else float(value) for name, value in (("min", low), ("max", high))]
    lowest, highest = bounds
    if lowest is not None and highest is not None:
        return F.hardtanh(x, lowest, highest)
    return x.clamp(lowest, highest)


def _pads(a: Any, rank: int) -> list[int]:
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Unsupported(f"auto_pad {a['auto_pad']}")
    return list(a.get("pads", [0] * 2 * rank))


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """Symmetric padding is left to the operator; any other is made here."""
    rank = len(pads) // 2
    first, last = list(pads[:rank]), list(pads[rank:])
    if first == last:
        return x, first
    flat = [pad for pair in zip(reversed(first), reversed(last), strict=True) for pad in pair]
    return F.pad(x, flat, value=value), [0] * rank


@_operator("Conv")
def _conv(a: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.dim() - 2
    x, pads = _padded(x, _pads(a, rank))
    convolve = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    ones = [1] * rank
    return convolve(x, weight, bias, a.get("strides", ones), pads, a.get("dilations", ones), a.get("group", 1))


@_operator("MaxPool", "AveragePool")
def _pool(a: Any, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    rank, maximum = len(kernel), a["op"] == "MaxPool"
    pads, ceil, strides = _pads(a, rank), bool(a.get("ceil_mode", 0)), a.get("strides", [1] * len(kernel))
    if maximum:
        x, pads = _padded(x, pads, -math.inf)
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
        return pool(x, kernel, strides, pads, a.get("dilations", [1] * rank), ceil)
    if pads[:rank] != pads[rank:]:
        raise Unsupported("AveragePool with other padding on the one side than on the other")
    average: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    return average(x, kernel, strides, pads[:rank], ceil, bool(a.get("count_include_pad", 0)))


@_operator("GlobalAveragePool")
def _global_average(a: Any, x: Tensor) -> Tensor:
    pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[x.dim() - 3]
    return pool(x, 1)


@_operator("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
def _reduce(a: Any, x: Any, axes: Any = None) -> Any:
    if not isinstance(x, Tensor):
        raise Unsupported(f"{a['op']} of sizes")
    axes = a.get("axes", []) if axes is None else _ints(axes)
    if not axes and a.get("noop_with_empty_axes", 0):
        return x
    axes, keep = list(axes) or list(range(x.dim())), bool(a.get("keepdims", 1))
    reduce: Any = {
        "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
        "ReduceL2": lambda x, axes, keepdim: x.square().sum(axes, keepdim=keepdim).sqrt(),
    }[a["op"]]  # fmt: skip
    return reduce(x, axes, keepdim=keep)


@_operator("Flatten")
def _flatten(a: Any, x: Tensor) -> Tensor:
    if a.get("axis", 1) != 1:
        raise Unsupported(f"Flatten at axis {a['axis']}")
    return x.flatten(1)


@_operator("Reshape")
def _reshape(a: Any, x: Any, shape: Any) -> Any:
    if not isinstance(x, Tensor):
        return np.reshape(x, _ints(shape))
    sizes = _ints(shape)
    if not a.get("allowzero", 0):
        sizes = [x.shape[at] if size == 0 else size for at, size in enumerate(sizes)]
    if isinstance(x.shape[0], torch.SymInt) and sizes and isinstance(sizes[0], int) and sizes[0] == a["batch"]:
        # Exported for one number of clips, which stands here.
        sizes[0] = x.shape[0]
    return x.reshape(sizes)


@_operator("Squeeze")
def _squeeze(a: Any, x: Any, axes: Any = None) -> Any:
    axes = a.get("axes") if axes is None else _ints(axes)
    if not isinstance(x, Tensor):
        return np.squeeze(x, None if axes is None else tuple(axes))
    return x.squeeze() if axes is None else x.squeeze(list(axes))


@_operator("Unsqueeze")
def _unsqueeze(a: Any, x: Any, axes: Any = None) -> Any:
    for axis in sorted(a["axes"] if axes is None else _ints(axes)):
        x = x.unsqueeze(axis) if isinstance(x, Tensor) else np.expand_dims(x, axis)
    return x


@_operator("Transpose")
def _transpose(a: Any, x: Tensor) -> Tensor:
    return x.permute(a.get("perm", list(reversed(range(x.dim())))))


@_operator("Concat")
def _concat(a: Any, *values: Any) -> Any:
    if any(isinstance(value, Tensor) for value in values):
        return torch.cat([_tensor(value) for value in values], a["axis"])
    return np.concatenate([np.atleast_1d(np.asarray(value, object)) for value in values], a["axis"])


@_operator("Split")
def _split(a: Any, x: Tensor, sizes: Any = None) -> Any:
    axis, parts = a.get("axis", 0), a.get("split") if sizes is None else _ints(sizes)
    if parts is None:
        return x.tensor_split(a.get("num_outputs", a["outputs"]), axis)
    return torch.split(x, list(parts), axis)


@_operator("Slice")
def _slice(a: Any, x: Any, *given: Any) -> Any:
    named = [a.get(name) for name in ("starts", "ends", "axes", "steps")]
    starts, ends, axes, steps = [*given, *[None] * (4 - len(given))] if given else named
    starts, ends = _ints(starts), _ints(ends)
    places = list(range(len(starts))) if axes is None else _ints(axes)
    strides = [1] * len(starts) if steps is None else _ints(steps)
    rank = x.dim() if isinstance(x, Tensor) else np.ndim(x)
    index = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, places, strides, strict=True):
        index[axis] = slice(start, None if isinstance(end, int) and end >= 2**31 - 1 else end, step)
    return x[tuple(index)]


@_operator("Gather")
def _gather(a: Any, x: Any, indices: Any) -> Any:
    axis = a.get("axis", 0)
    if not isinstance(x, Tensor):
        return np.take(x, np.asarray(indices, dtype=np.int64), axis)
    wanted = torch.as_tensor(_tensor(indices))
    if wanted.dim() == 0:
        return x.select(axis, int(wanted))
    return x.index_select(axis, wanted.flatten()).reshape([*x.shape[:axis], *wanted.shape, *x.shape[axis + 1 :]])


@_operator("Pad")
def _pad(a: Any, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    if a.get("mode", "constant") != "constant" or axes is not None:
        raise Unsupported(f"Pad of mode {a.get('mode')}")
    sizes = a["pads"] if pads is None else _ints(pads)
    rank = len(sizes) // 2
    flat = [pad for at in reversed(range(rank)) for pad in (sizes[at], sizes[rank + at])]
    return F.pad(x, flat, value=float(a.get("value", 0.0) if value is None else value))


@_operator("Gemm")
def _gemm(a: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x.t() if a.get("transA", 0) else x
    if a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0:
        raise Unsupported("Gemm with factors")
    return F.linear(x, weight if a.get("transB", 0) else weight.t(), bias)


@_operator("BatchNormalization")
def _batch_norm(a: Any, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.1, a.get("epsilon", 1e-5))


@_operator("LayerNormalization")
def _layer_norm(a: Any, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, x.shape[a.get("axis", -1) :], scale, shift, a.get("epsilon", 1e-5))


@_operator("InstanceNormalization")
def _instance_norm(a: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=shift, eps=a.get("epsilon", 1e-5))
