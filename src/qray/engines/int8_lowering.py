"""From a network with quantize/dequantize pairs around convolutions in float, as `pt2e` gives it, to one that calls
`qray::int8_conv2d`: the same scales and codes, in integers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qray.engines import int8_conv
from qray.engines.layers import ADDS, LAYER, operator_of
from qray.engines.pt2e import strip_unused

aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = decomposed.quantize_per_tensor, decomposed.dequantize_per_tensor
#: What cuts off at either end, and its bounds where its arguments do not give them.
CLAMPS: dict[Any, tuple[float, float | None]] = {
    aten.relu: (0.0, None), aten.relu_: (0.0, None), aten.relu6: (0.0, 6.0), aten.hardtanh: (-1.0, 1.0),
    aten.hardtanh_: (-1.0, 1.0),
}  # fmt: skip
#: What codes of uint8 are less, stored as int8.
SHIFT = 128
#: What the codes of a convolution's weights are called within its layer; of its second call, with a number after it.
CODES = "int8_weight"


def lower(module: fx.GraphModule) -> fx.GraphModule:
    """A copy that computes what it can in integers: convolutions whose input and weights are quantized, each with what
    is added, cut off and quantized after it, and maximum pools between them. What else there is stays in float."""
    module = copy.deepcopy(module)
    graph = module.graph
    node: Any
    for node in graph.nodes:
        if operator_of(node) in (QUANTIZE, DEQUANTIZE):
            # Conversion gave them none, and its shape is wanted.
            node.meta["val"] = node.args[0].meta.get("val")
        if operator_of(node) in (QUANTIZE, DEQUANTIZE) and node.args[-1] == torch.uint8:
            node.args = (*node.args[:2], node.args[2] - SHIFT, int8_conv.LOW, int8_conv.HIGH, torch.int8)
    for node in list(graph.nodes):
        if operator_of(node) is aten.conv2d:
            _lower_convolution(module, node)
    for node in list(graph.nodes):
        if operator_of(node) is aten.max_pool2d:
            _lower_pool(graph, node)
    for node in list(graph.nodes):
        if operator_of(node) in (QUANTIZE, DEQUANTIZE):
            _spell_out(graph, node)
    return strip_unused(module)


def int8_layers(program: torch.export.ExportedProgram) -> tuple[set[str], int]:
    """Layers that a lowered program runs as INT8 kernels, and how many of those add a residual."""
    buffers = program.graph_signature.inputs_to_buffers
    calls = [node for node in program.graph.nodes if operator_of(node) is torch.ops.qray.int8_conv2d]
    adds = sum(len(node.args) > RESIDUAL and node.args[RESIDUAL] is not None for node in calls)
    return {buffers[node.args[1].name].rpartition(f".{CODES}")[0] for node in calls}, adds


#: Of the operator's arguments, which one the residual is.
RESIDUAL = [argument.name for argument in torch.ops.qray.int8_conv2d.default._schema.arguments].index("residual")


def _lower_convolution(module: fx.GraphModule, node: Any) -> None:
    graph = module.graph
    given: list[Any] = [*node.args, *(None, 1, 0, 1, 1)[len(node.args) - 2 :]]
    x, weight, bias, stride, padding, dilation, groups = given
    if operator_of(x) is not DEQUANTIZE or operator_of(weight) is not decomposed.dequantize_per_channel:
        return
    codes, x_scale, x_zero = x.args[:3]
    weights, scales = (_held(module, each) for each in weight.args[:2])
    stride, dilation = _pair(stride), _pair(dilation)
    padding = _padding(padding, weights.shape[2:], dilation)
    if padding is None:
        return
    chain, residual = [node], (None, 1.0, 0)
    bounds: tuple[float | None, ...] = (None, None)
    if (after := _only_user(node)) is not None and operator_of(after) in ADDS and (added := _added(after, node)):
        chain, residual = [*chain, after], added
    if (after := _only_user(chain[-1])) is not None and operator_of(after) in CLAMPS:
        default = CLAMPS[operator_of(after)]
        chain, bounds = [*chain, after], (*after.args[1:], *default[len(after.args) - 1 :])
    last = chain[-1]
    quantizers = [user for user in last.users if operator_of(user) is QUANTIZE]
    quantizes = len(quantizers) == len(last.users) and len({user.args[1:] for user in quantizers}) == 1
    out = quantizers[0].args[1:3] if quantizes else (None, 0)
    tensors = {
        CODES: weights.clone(),
        "int8_scale": (scales.double() * x_scale).float(),
        "int8_bias": torch.zeros(len(weights)) if bias is None else _held(module, bias),
        "int8_correction": int8_conv.corrections(weights, x_zero, padding, dilation),
    }
    with graph.inserting_before(last):
        held = [graph.get_attr(_hold(module, node.meta[LAYER], name, tensor)) for name, tensor in tensors.items()]
        call = graph.call_function(
            torch.ops.qray.int8_conv2d.default,
            (codes, *held, stride, padding, dilation, groups, *residual, *bounds, *out),
        )
    call.meta = dict(last.meta)
    for end in quantizers if quantizes else [last]:
        end.replace_all_uses_with(call)
    # Operators in place are not taken for dead.
    for end in (*(quantizers if quantizes else ()), *reversed(chain)):
        graph.erase_node(end)


def _held(module: fx.GraphModule, node: Any) -> Tensor:
    value = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    assert isinstance(value, Tensor)
    return value.detach()


def _hold(module: fx.GraphModule, layer: str, name: str, tensor: Tensor) -> str:
    """Register a buffer of a layer; its whole name. A layer that is called again has another of that name."""
    try:
        owner = module.get_submodule(layer)
    except AttributeError:
        owner = torch.nn.Module()
        module.add_submodule(layer, owner)
    calls = sum(each.startswith(name) for each, _ in owner.named_buffers(recurse=False))
    name += f"_{calls}" if calls else ""
    owner.register_buffer(name, tensor)
    return f"{layer}.{name}"


def _pair(value: int | Sequence[int]) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int] | None:
    """At either end of both axes; None where the ends differ."""
    if padding == "valid":
        return [0, 0]
    if padding == "same":
        both = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return None if any(n % 2 for n in both) else [n // 2 for n in both]
    return _pair(padding)


def _only_user(node: fx.Node) -> Any:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added(add: Any, convolved: fx.Node) -> Any:
    """Codes, scale and zero point of what is added to a convolution, where it is quantized and of the same shape."""
    other = add.args[0] if add.args[1] is convolved else add.args[1]
    if operator_of(other) is not DEQUANTIZE or add.kwargs.get("alpha", 1) != 1:
        return None
    here, there = (node.meta.get("val") for node in (convolved, other))
    if here is None or there is None or here.shape != there.shape:
        return None
    return other.args[:3]


def _lower_pool(graph: fx.Graph, pool: Any) -> None:
    """The maximum of codes is the code of the maximum, where both have the same scale; 16 bits hold codes exactly, and
    GPUs pool floats alone."""
    before, after = pool.args[0], list(pool.users)
    same = operator_of(before) is DEQUANTIZE and all(
        operator_of(user) is QUANTIZE and user.args[1:] == before.args[1:] for user in after
    )
    if not same:
        return
    with graph.inserting_before(pool):
        half = graph.call_function(aten.to.dtype, (before.args[0], torch.float16))
    pool.args = (half, *pool.args[1:])
    with graph.inserting_after(pool):
        codes = graph.call_function(aten.to.dtype, (pool, torch.int8))
    for user in after:
        user.replace_all_uses_with(codes)
        graph.erase_node(user)


def _spell_out(graph: fx.Graph, node: Any) -> None:
    """In PyTorch's own operators: those of quantization come from a package that what is deployed does without."""
    value, scale, zero, low, high, _ = node.args
    steps: list[tuple[Any, ...]]
    with graph.inserting_before(node):
        if operator_of(node) is QUANTIZE:
            steps = [(aten.mul.Tensor, 1.0 / scale), (aten.round.default,), (aten.add.Tensor, zero),
                     (aten.clamp.default, low, high), (aten.to.dtype, torch.int8)]  # fmt: skip
        else:
            steps = [(aten.to.dtype, torch.float32), (aten.sub.Tensor, zero), (aten.mul.Tensor, scale)]
        for operator, *arguments in steps:
            value = graph.call_function(operator, (value, *arguments))
    node.replace_all_uses_with(value)
    graph.erase_node(node)
