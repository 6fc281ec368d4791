"""INT8 convolutions over time for AOTInductor, which has their kernels and no way to them: torchao's quantizer marks
convolutions of two dimensions alone, and its passes lower those alone. What is marked and lowered here is computed by
the same operators of oneDNN (torch 2.14.1; its FX quantization, which is deprecated, would call others)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    QUANT_ANNOTATION_KEY,
    QuantizationConfig,
    _X86InductorQuantizationAnnotation,
)

from qray.engines.layers import ADDS, operator_of
from qray.engines.tail import in_backbone

aten, decomposed, onednn = torch.ops.aten, torch.ops.quantized_decomposed, torch.ops.onednn
#: Of clips in a batch: (B, C, T, H, W).
RANK = 5
#: After torchao's own, which would give these convolutions operators after them that their kernels do not take.
PASS = 6


def annotate(graph: fx.Graph, config: QuantizationConfig) -> None:
    """Mark convolutions over time, and additions between them, as the x86 quantizer marks others: of what is added all
    but what a convolution leaves for it alone, in float. What is marked already, to stay as it is, is left so."""
    for node in graph.nodes:
        if QUANT_ANNOTATION_KEY in node.meta:
            continue
        if operator_of(node) is aten.conv3d:
            _mark(node, {node.args[0]: config.input_activation, node.args[1]: config.weight})
        elif operator_of(node) in ADDS and in_backbone(node) and _rank(node) == RANK:
            operands = [each for each in node.args[:2] if isinstance(each, fx.Node) and _rank(each) == RANK]
            made = [each for each in operands if _is_marked(each) and len(each.users) == 1]
            if len(operands) == 2:
                _mark(node, {each: config.input_activation for each in operands if each not in made[-1:]})


def _mark(node: fx.Node, inputs: dict[fx.Node, Any]) -> None:
    node.meta[QUANT_ANNOTATION_KEY] = _X86InductorQuantizationAnnotation(input_qspec_map=inputs, _annotated=True)


def _is_marked(node: fx.Node) -> bool:
    """Whether it is a convolution over time that will be quantized."""
    return operator_of(node) is aten.conv3d and bool(node.meta[QUANT_ANNOTATION_KEY].input_qspec_map)


def _rank(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 0


@functools.cache
def teach_inductor() -> None:
    """Have Inductor, when it freezes a graph in this process, lower these convolutions too."""
    from torch._inductor.fx_passes.freezing_patterns import register_freezing_graph_pattern
    from torch._inductor.pattern_matcher import CallFunction, Ignored, KeywordArg, Match

    def call(target: Any, *names: str) -> Any:
        return CallFunction(target, *(KeywordArg(name) if name else Ignored() for name in names))

    clips = call(decomposed.dequantize_per_tensor.default, "x", "x_scale", "x_zero", "", "", "")
    codes = call(decomposed.dequantize_per_channel.default, "w", "w_scale", "w_zero", "", "", "", "")
    moved = CallFunction(aten.clone.default, codes, memory_format=Ignored())
    rest = [KeywordArg(name) for name in ("bias", "stride", "padding", "dilation")]

    def is_over_time(match: Match) -> bool:
        return _rank(match.output_node()) == RANK

    for weights in (codes, moved):
        pattern = CallFunction(
            aten.convolution.default, clips, weights, *rest, False, Ignored(), KeywordArg("groups")
        )  # fmt: skip
        register: Any = register_freezing_graph_pattern(pattern, is_over_time, PASS)  # type: ignore[no-untyped-call]
        register(_lower)


def _lower(match: Any, **found: Any) -> None:
    """Replace a convolution between codes by oneDNN's, together with a ReLU and the quantization after it, where
    nothing else reads what comes between: codes that begin at zero cut off what is negative."""
    convolution, graph = match.output_node(), match.graph
    after = _only_user(convolution, aten.relu.default)
    quantize = _only_user(after or convolution, decomposed.quantize_per_tensor.default)
    if quantize is not None and (after is None or quantize.args[2] == 0):
        replaced = [quantize, *([after] if after else []), convolution]
        scale, zero, dtype = quantize.args[1], quantize.args[2], quantize.args[5]
    else:
        replaced, scale, zero, dtype = [convolution], 1.0, 0, torch.float32
    at = [found[name] for name in ("stride", "padding", "dilation", "groups")]
    x, w = ([found[f"{of}_scale"], found[f"{of}_zero"]] for of in "xw")
    with graph.inserting_before(replaced[0]):
        # No shape of the input, whose batch is any: freezing computes this node and keeps what it gives.
        packed = graph.call_function(onednn.qconv_prepack, (found["w"], w[0], *x, *at, None))
        made = graph.call_function(
            onednn.qconv_pointwise.default,
            (found["x"], *x, packed, *w, found["bias"], *at, scale, zero, dtype, "none", [], ""),
        )
    made.meta.update(replaced[0].meta)
    replaced[0].replace_all_uses_with(made)
    for node in replaced:
        graph.erase_node(node)


def _only_user(node: fx.Node, target: Any) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target is target else None


def int8_adds(module: fx.GraphModule) -> int:
    """Additions between convolutions over time of a converted module that read codes. They are computed in float, in
    the loop that reads those codes and writes the next."""
    adds = (node for node in module.graph.nodes if operator_of(node) in ADDS and _rank(node) == RANK)
    codes = decomposed.dequantize_per_tensor.default
    return sum(in_backbone(node) and any(each.target is codes for each in node.all_input_nodes) for node in adds)
