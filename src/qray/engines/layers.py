"""The layers of a network as its exported graph has them: names, costs, and what can be quantized by itself. Apart from
torchao, so that a driver can plan without it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx, nn

from qray.engines.tail import BACKBONE, in_backbone, tail_nodes
from qray.errors import QrayError
from qray.study import ClipSpec

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.conv3d)
#: Products of matrices, and which of their arguments is the left one.
PRODUCTS = {
    aten.linear: 0, aten.matmul: 0, aten.mm: 0, aten.bmm: 0, aten._int_mm: 0, aten.addmm: 1, aten.baddbmm: 1,
    aten.scaled_dot_product_attention: 0,
}  # fmt: skip
ADDS = (aten.add, aten.add_)
AVERAGE_POOLS = tuple(getattr(aten, f"{kind}avg_pool{rank}d") for kind in ("", "adaptive_") for rank in (1, 2, 3))
#: Channels that oneDNN computes together.
CHANNEL_BLOCK = 16
#: Share of the multiply-accumulates that a quantizer may leave in FP32 by a rule of its own, and the variant is INT8.
LEFT_AT_MOST = 0.1
#: Where a backbone that was imported as a graph has it (`graph_network.Part`).
GRAPH = "graph."
#: Where `pt2e` leaves the layers of the network in the `meta` of what it makes of it.
LAYERS = "qray_layers"
#: And in that of a node, the name of its layer.
LAYER = "qray_layer"

Kind = Literal["convolution", "linear", "matmul", "add", "pool"]


@dataclass(frozen=True)
class Layer:
    """What multiplies; in the backbone also what adds two activations or pools them.

    name: path of its module ("backbone.layer1.0.conv1"), and where that does more than this, the operator
    ("backbone.layer1.0.add"). kind: "linear" multiplies by weights, "matmul" activations by one another. macs:
    multiply-accumulates for one clip. channels: of a convolution's output. tail: whether it comes after the backbone.
    nodes: its names in the graph, several where a module is called several times.
    """

    name: str
    kind: Kind
    macs: int
    channels: int
    tail: bool
    nodes: tuple[str, ...]

    @property
    def short(self) -> str:
        """The name within the backbone, as users write it; of an imported graph, that of its weights."""
        return self.name.removeprefix(f"{BACKBONE}.").removeprefix(GRAPH)

    @property
    def weighted(self) -> bool:
        """Whether it has weights, so that every engine can keep it in FP32."""
        return self.kind in ("convolution", "linear")


Layers = tuple[Layer, ...]


def export(model: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """Export with a dynamic batch. example: uint8 (2, T, H, W, 3)."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        batch = {0: torch.export.Dim.DYNAMIC}
        # Dynamo (strict) would take five times as long.
        return torch.export.export(model, (example.clone(),), dynamic_shapes=(batch,), strict=False)


def read_layers(program: torch.export.ExportedProgram) -> Layers:
    """Layers of a network that was exported with a dynamic batch of clips, in the order in which they are computed."""
    activations, tail = set(program.graph_signature.user_inputs), set(tail_nodes(program.graph))
    signature = program.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    found: dict[str, Layer] = {}
    for node in program.graph.nodes:
        # Sizes depend on the input too, and what is computed from them alone is no activation.
        is_tensor = isinstance(node.meta.get("val"), torch.Tensor | list | tuple)
        if not is_tensor or not activations.intersection(source.name for source in node.all_input_nodes):
            continue
        activations.add(node.name)
        kind = _kind(node, activations)
        if kind is None:
            continue
        macs = 0 if kind in ("add", "pool") else _macs(node)
        channels = _operands(node)[1].meta["val"].shape[0] if kind == "convolution" else 0
        layer = Layer(_name(node, kind, tensors), kind, macs, channels, node in tail, (node.name,))
        if (known := found.get(layer.name)) is None:
            found[layer.name] = layer
        elif layer.weighted:
            found[layer.name] = replace(known, macs=known.macs + macs, nodes=known.nodes + layer.nodes)
        else:
            name = next(n for i in itertools.count(1) if (n := f"{layer.name}.{i}") not in found)
            found[name] = replace(layer, name=name)
    return tuple(found.values())


def operator_of(node: Any) -> Any:
    """What a node of a graph calls, whichever the overload; None where it calls nothing, or is a number."""
    return getattr(getattr(node, "target", None), "overloadpacket", None)


def _kind(node: fx.Node, activations: Collection[str]) -> Kind | None:
    operator = operator_of(node)
    if operator in CONVOLUTIONS:
        return "convolution"
    both = all(isinstance(a, fx.Node) and a.name in activations for a in _operands(node))
    if operator in PRODUCTS:
        return "matmul" if both else "linear"
    if operator in ADDS and both and in_backbone(node):
        return "add"
    return "pool" if operator in AVERAGE_POOLS and in_backbone(node) else None


def _operands(node: fx.Node) -> tuple[Any, ...]:
    at = PRODUCTS.get(operator_of(node), 0)
    return node.args[at : at + 2]


def _name(node: fx.Node, kind: Kind, tensors: Mapping[str, str]) -> str:
    """tensors: paths of parameters, by the nodes that stand for them."""
    path, owner = list(node.meta["nn_module_stack"].values())[-1]
    if kind in ("convolution", "linear") and (weight := tensors.get(_operands(node)[1].name)):
        # A graph that was imported has no modules, but its weights have the names of those that there were.
        return weight.rpartition(".")[0]
    # A module's second call is "conv@1".
    path = path.split("@")[0]
    if kind in ("convolution", "linear") or str(owner).startswith("torch.nn.modules.pooling."):
        return path
    return f"{path}.{operator_of(node).__name__.strip('_')}".lstrip(".")


def _macs(node: fx.Node) -> int:
    """Multiply-accumulates for one clip. A graph knows its tensors' shapes, with a symbol for the batch."""
    left, right, product = (each.meta["val"] for each in (*_operands(node), node))
    if operator_of(node) in CONVOLUTIONS:
        count = product.numel() * (right.numel() // right.shape[0])
    elif operator_of(node) is aten.scaled_dot_product_attention:
        count = (left.numel() + product.numel()) * right.shape[-2]
    else:
        count = product.numel() * left.shape[-1]
    if isinstance(count, torch.SymInt):
        count = count.node.expr.subs(dict.fromkeys(count.node.expr.free_symbols, 1))
    return int(count)


def layers_of(model: nn.Module, clip: ClipSpec = ClipSpec()) -> Layers:
    """Layers of a network on any device, meta included. clip: what it is to see, by which MACs go."""
    shape, device = (2, clip.frames, clip.image_size, clip.image_size, 3), next(model.parameters()).device
    return read_layers(export(model, torch.zeros(shape, dtype=torch.uint8, device=device)))


def quantizable(layers: Layers) -> Layers:
    """What can be quantized by itself: in the backbone, every layer with weights (its input and its weights), every
    residual addition (the operand that is not accumulated in FP32) and every average pool."""
    return tuple(layer for layer in layers if not layer.tail and layer.kind != "matmul")


def layer_names(model: nn.Module) -> tuple[str, ...]:
    """Names of what is `quantizable`, in the order of the network; `keep_fp32` takes those with weights, and
    where the engine's entry in the catalog says so the others."""
    return tuple(layer.short for layer in quantizable(layers_of(model)))


def total_macs(layers: Layers) -> int:
    """Multiply-accumulates of a network for one clip."""
    return sum(layer.macs for layer in layers)


def races(layers: Layers) -> bool:
    """Whether oneDNN's INT8 convolutions of this network give other results in each call on several threads.

    Where a layer's channels are no multiple of the block, threads write past their part into that of others. Measured
    on AVX2 with torch 2.14.1 (AOTInductor) on 2 threads: predictions move by 5 to 18 points in 23 to 30 of 30 calls at
    widths 4, 8, 12 and 20, in none at 16; OpenVINO 2026.4.1, which has a oneDNN of its own, in 1 of 30 at width 4. On
    one thread, and in ONNX Runtime and FP32, in none.
    """
    return any(layer.channels % CHANNEL_BLOCK for layer in layers)


def resolve_keep_fp32(layers: Layers, names: tuple[str, ...], unweighted: bool = False) -> tuple[str, ...]:
    """Full module names of layers kept in FP32; "layer1.0.conv1" stands for "backbone.layer1.0.conv1".

    unweighted: whether residual additions and average pools may be named too.

    Raises:
        QrayError: a name is no such layer of the model.
    """
    weighted = [layer for layer in layers if layer.weighted or (unweighted and layer in quantizable(layers))]
    known = {layer.short: layer.name for layer in weighted} | {layer.name: layer.name for layer in weighted}
    unknown = [name for name in names if name not in known]
    if unknown:
        has = ", ".join(layer.short for layer in weighted)
        raise QrayError(f"keep_fp32: no layer {', '.join(unknown)}; the model has {has}")
    return tuple(known[name] for name in names)


def check_coverage(
    layers: Layers, int8_layers: set[str], int8_adds: int, keep_fp32: tuple[str, ...], left: Collection[str] = ()
) -> float:
    """The INT8 share of what an engine executes: of all multiply-accumulates. left: layers that the engine's quantizer
    does not quantize, by a rule of its own.

    Raises:
        QrayError: a layer that was quantized ran in FP32, a residual add did, or a layer of the tail, or one to be
            kept in FP32, ran in INT8; or more was left than `LEFT_AT_MOST`. Layers are counted, not MACs: a
            downsampling convolution is a third of a percent of ResNet-18.
    """
    wanted = {layer.name for layer in layers if layer.weighted and not layer.tail} - {*keep_fp32, *left}
    unquantized = sum(layer.macs for layer in layers if layer.name in left) / total_macs(layers)
    if unquantized > LEFT_AT_MOST:
        count = f"{len(left)} convolution{'s' * (len(left) > 1)}"
        names = ", ".join(sorted(left))
        raise QrayError(f"the quantizer leaves {count} in FP32, {unquantized:.0%} of the multiply-accumulates: {names}")
    fp32, not_kept = sorted(wanted - int8_layers), sorted(int8_layers & set(keep_fp32))
    if fp32:
        raise QrayError(f"the engine runs {len(fp32)} of {len(wanted)} convolutions in FP32: {', '.join(fp32)}")
    if tail := sorted(int8_layers - {layer.name for layer in layers if not layer.tail}):
        raise QrayError(f"the engine runs layers in INT8 that come after pooling over time: {', '.join(tail)}")
    if not_kept:
        raise QrayError(f"the engine runs layers in INT8 that keep_fp32 names: {', '.join(not_kept)}")
    adds = sum(layer.kind == "add" for layer in layers)
    if not keep_fp32 and int8_adds < adds:
        raise QrayError(f"the engine runs {adds - int8_adds} of {adds} residual adds in FP32")
    return sum(layer.macs for layer in layers if layer.name in int8_layers) / total_macs(layers)
