"""AdaRound: weights rounded so that layers compute what they did, not each to its nearest code (Nagel et al. 2020, "Up
or Down? Adaptive Rounding for Post-Training Quantization", arXiv 2004.10568). Own code: torchao and NNCF have none."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from qray.engines.layers import CONVOLUTIONS, operator_of

aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed
Activation = Callable[[torch.Tensor], torch.Tensor]
#: What may follow a layer and is part of what it computes (equation 25), by the operator's name.
ACTIVATIONS = ("relu", "relu6", "hardtanh", "hardswish", "silu", "hardsigmoid", "sigmoid", "gelu")
#: Ends of the stretched sigmoid of equation 23.
ZETA, GAMMA = 1.1, -0.1
#: Bytes that all clips together may keep between two layers; by which their number goes, where it is not the study's.
KEPT_BYTES = 2 << 30
#: Bytes of what a layer reads at the positions of its output that it is learned from; by which their number goes,
#: where it is not `Learning.positions`.
PATCH_BYTES = 512 << 20


@dataclass(frozen=True)
class Learning:
    """How roundings are learned: Adam steps on `batch` of `positions` of a layer's output each; a first share of them
    without the regulariser, of the given weight, whose exponent then falls from the first to the second beta.

    Tuned on TRAIN clips of quickstart by the error of two layers' outputs (conv2d_5, conv2d_11) as a share of nearest
    rounding's. With the paper's learning rate (0.01) and beta (20 to 2), 1000 steps leave 0.54 and 0.34, because most
    weights still lie between two codes when they are rounded; these settings, with half as many steps, 0.23 and 0.16 on
    clips that they were not learned from, and with 1000 steps 0.23 and 0.15. From 8192 positions a layer, predictions
    on VAL come out 0.51 from FP32's (RMS; of nearest rounding 2.14), from 32768 ones 0.42.
    """

    positions: int = 32768
    steps: int = 500
    batch: int = 256
    lr: float = 0.1
    weight: float = 5.0
    warm: float = 0.2
    beta: tuple[float, float] = (8.0, 2.0)


class _Walk:
    """A network computed for many clips side by side, node after node. What later nodes read is kept of each clip:
    quantized activations as their codes."""

    def __init__(self, module: fx.GraphModule, clips: Sequence[torch.Tensor]) -> None:
        self.module, self.at = module, 0
        nodes = list(module.graph.nodes)
        self.start = next(node for node in nodes if node.op == "placeholder")
        depends = {self.start}
        for node in nodes:
            if depends.intersection(node.all_input_nodes):
                depends.add(node)
        # Computed anew wherever they are read: what does not depend on clips, and the values of codes.
        lazy = decomposed.dequantize_per_tensor.default
        self.nodes = [n for n in nodes if n in depends and n.users and n is not self.start and n.target is not lazy]
        self.last: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            for source in self._stored(node):
                self.last[source] = node
        self.clips: list[dict[fx.Node, Any]] = [{self.start: clip} for clip in clips]

    def _stored(self, node: fx.Node) -> Iterator[fx.Node]:
        for source in node.all_input_nodes:
            if source.target is decomposed.dequantize_per_tensor.default:
                yield from self._stored(source)
            else:
                yield source

    def before(self, name: str) -> Iterator[dict[fx.Node, Any]]:
        """Of each clip what is there when the node of this name comes next."""
        end = next(at for at, node in enumerate(self.nodes) if node.name == name)
        for kept in self.clips:
            for node in self.nodes[self.at : end]:
                kept[node] = self._compute(node, kept)
                for source in self._stored(node):
                    if self.last[source] is node:
                        kept.pop(source, None)
            yield kept
        self.at = end

    def value(self, node: Any, kept: dict[fx.Node, Any]) -> Any:
        """The value of a node of one clip; of a constant, of any."""
        return kept[node] if node in kept else self._compute(node, kept)

    def _compute(self, node: fx.Node, kept: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.module)
        function: Any = self.module.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        args, named = fx.map_arg((node.args, node.kwargs), lambda source: self.value(source, kept))
        return function(*args, **named)


@dataclass(frozen=True)
class _Layer:
    """A quantized layer: its node and that of the FP32 network, and the arguments of its weights' dequantization."""

    node: fx.Node
    reference: fx.Node
    codes: str
    scale: str
    low: int
    high: int


def _layers(quantized: fx.GraphModule, reference: fx.GraphModule) -> list[_Layer]:
    named = {node.name: node for node in reference.graph.nodes}
    found: dict[str, _Layer] = {}
    for node in quantized.graph.nodes:
        if operator_of(node) not in (*CONVOLUTIONS, aten.linear):
            continue
        weights = node.args[1]
        if weights.target is decomposed.dequantize_per_channel.default:
            codes, scale, _, _, low, high, _ = weights.args
            # A layer that is called again keeps what was learned where it came first.
            found.setdefault(codes.target, _Layer(node, named[node.name], codes.target, scale.target, low, high))
    return list(found.values())


def _activation(node: fx.Node) -> Activation:
    """What alone reads a layer's output, where it is an activation function; else the identity."""
    users = list(node.users)
    if len(users) == 1 and users[0].op == "call_function":
        after: Any = users[0]
        if after.target.overloadpacket.__name__.removesuffix("_") in ACTIVATIONS:
            return lambda x: after.target(x, *after.args[1:], **after.kwargs)
    return lambda x: x


def windows(node: fx.Node, x: torch.Tensor, kernel: torch.Size) -> torch.Tensor:
    """What a layer multiplies by its weights at each position of its output, as a view: (N, *positions, C, *kernel)."""
    if operator_of(node) is aten.linear:
        return x
    rank = len(kernel)
    stride, padding, dilation = (_each(node, at, rank) for at in (3, 4, 5))
    seen = F.pad(x, [amount for each in reversed(padding) for amount in (each, each)])
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        seen = seen.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    return seen.movedim(1, 1 + rank)


def _each(node: fx.Node, at: int, rank: int) -> list[int]:
    """An argument of a convolution, for each axis: its stride, padding or dilation."""
    given: Any = node.args[at] if len(node.args) > at else [0 if at == 4 else 1]
    return [*given] * (rank if len(given) == 1 else 1)


def _groups(node: fx.Node) -> int:
    is_grouped = operator_of(node) is not aten.linear and len(node.args) > 6
    return int(str(node.args[6])) if is_grouped else 1


@torch.enable_grad()
def learn_rounding(
    weight: torch.Tensor, scale: torch.Tensor, bounds: tuple[int, int], bias: torch.Tensor, patches: torch.Tensor,
    target: torch.Tensor, activation: Activation, learning: Learning, generator: torch.Generator,
) -> torch.Tensor:  # fmt: skip
    """Codes (G, O, K) of weights (G, O, K), each `weight / scale` rounded down or up: such that the layer of `patches`
    (G, P, K) comes closest to `target` (G, P, O), both after the activation function. scale (G, O, 1), bias (G, 1, O).
    """
    weight, bias = weight.detach(), bias.detach()
    down = torch.floor(weight / scale)
    up = weight / scale - down
    # Where the stretched sigmoid of equation 23 is what rounding takes away, weights begin as they are.
    v = torch.logit((up - GAMMA) / (ZETA - GAMMA)).requires_grad_()

    def share() -> torch.Tensor:
        return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def error(rounded: torch.Tensor, at: Any) -> torch.Tensor:
        weights = (down + rounded).clamp(*bounds) * scale
        made = activation(torch.baddbmm(bias, patches[:, at], weights.transpose(1, 2)))
        return (made - target[:, at]).square().mean()

    with torch.no_grad():
        # Layers differ by orders of magnitude in what they compute; the regulariser's weight is of rounding's error.
        nearest = error(up.round(), slice(None)).clamp(min=torch.finfo(torch.float32).tiny)
    optimizer = torch.optim.Adam([v], lr=learning.lr)
    first, (begin, end) = int(learning.warm * learning.steps), learning.beta
    for step in range(learning.steps):
        at = torch.randint(patches.shape[1], (learning.batch,), generator=generator)
        rounded = share()
        loss = error(rounded, at) / nearest
        if step >= first:
            done = (step - first) / (learning.steps - first)
            beta = end + (begin - end) * (1 - done)
            # Equation 24.
            loss = loss + learning.weight * (1 - (2 * rounded - 1).abs().pow(beta)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return (down + (share() >= 0.5)).clamp(*bounds)


def round_adaptively(
    reference: fx.GraphModule, quantized: fx.GraphModule, clips: Sequence[torch.Tensor], seed: int,
    learning: Learning = Learning(),
) -> None:  # fmt: skip
    """Round anew, in place, the weights of a converted network, layer after layer: the input of each is that of the
    network whose layers before it are quantized, its target the output of `reference`, the same network in FP32
    (asymmetric reconstruction, equation 25). clips: uint8 (1, T, H, W, 3) each, of which as many are used as may be
    kept."""
    generator = torch.Generator().manual_seed(seed)
    layers = _layers(quantized, reference)
    chosen = _spread(clips, int(KEPT_BYTES // _most_kept(layers, quantized, reference, clips[:1])))
    walks = _Walk(quantized, chosen), _Walk(reference, chosen)
    for layer in layers:
        _round(layer, *walks, learning, generator)


def _spread(clips: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    """At most so many clips, and at least one, evenly spread: they come in the order of the manifest."""
    count = max(1, min(count, len(clips)))
    return [clips[at * len(clips) // count] for at in range(count)]


def _most_kept(
    layers: list[_Layer], quantized: fx.GraphModule, reference: fx.GraphModule, clip: Sequence[torch.Tensor]
) -> int:
    """Bytes that a clip keeps before the layer before which they are most."""
    walks = _Walk(quantized, clip), _Walk(reference, clip)
    most = 1
    with torch.no_grad():
        for layer in layers:
            kept = [value for walk in walks for each in walk.before(layer.node.name) for value in each.values()]
            most = max(most, sum(value.nbytes for value in kept if isinstance(value, torch.Tensor)))
    return most


def _round(
    layer: _Layer, quantized: _Walk, reference: _Walk, learning: Learning, generator: torch.Generator
) -> None:  # fmt: skip
    """Round the weights of a layer that both walks have come to."""
    _, weights, *rest = layer.reference.args
    activation, groups, name = _activation(layer.reference), _groups(layer.node), layer.node.name
    with torch.no_grad():
        weight = reference.value(weights, {})
        bias = reference.value(rest[0], {}) if rest and rest[0] is not None else weight.new_zeros(len(weight))
        flat, offset = weight.reshape(groups, len(weight) // groups, -1), bias.view(groups, 1, -1)
        scale = getattr(quantized.module, layer.scale).view(groups, -1, 1)
        fit = PATCH_BYTES // (4 * groups * flat.shape[-1])
        count = -(-min(learning.positions, fit) // len(quantized.clips))
        patches = flat.new_empty(groups, count * len(quantized.clips), flat.shape[-1])
        target = flat.new_empty(*patches.shape[:2], flat.shape[1])
        for clip, kept in enumerate(zip(quantized.before(name), reference.before(name), strict=True)):
            pair = [
                windows(node, walk.value(node.args[0], values), weight.shape[2:])
                for walk, node, values in zip((quantized, reference), (layer.node, layer.reference), kept, strict=True)
            ]
            at = [torch.randint(size, (count,), generator=generator) for size in pair[0].shape[: 1 - weight.dim()]]
            x, exact = (seen[*at].reshape(count, groups, -1).transpose(0, 1) for seen in pair)
            here = slice(clip * count, (clip + 1) * count)
            patches[:, here] = x
            target[:, here] = activation(torch.baddbmm(offset, exact, flat.transpose(1, 2)))
    bounds = (layer.low, layer.high)
    codes = learn_rounding(flat, scale, bounds, offset, patches, target, activation, learning, generator)
    with torch.no_grad():
        getattr(quantized.module, layer.codes).copy_(codes.view_as(weight))
