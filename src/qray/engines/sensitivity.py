"""Which layer loses what to quantization: fake-quantize one layer alone, and all but one, in the network PTQ ships."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torchao.quantization.pt2e import ObserverBase

from qray.engines.artifact import BuildRequest
from qray.engines.fake_quantize import fake_quantize
from qray.engines.layers import LAYERS, quantizable
from qray.engines.pt2e import observe_static
from qray.errors import QrayError

#: Clips that go through the network at once, and values of a clip from which it goes alone: every activation of a whole
#: pass is kept meanwhile, which is 1.2 GB of R(2+1)D-18 for one clip of 32 x 112 x 112.
CLIPS_AT_ONCE, LARGE = 2, 1 << 20
#: An exported graph keeps in-place operators, which would overwrite activations that later passes start from.
OUT_OF_PLACE = {
    torch.ops.aten.relu_.default: torch.ops.aten.relu.default,
    torch.ops.aten.add_.Tensor: torch.ops.aten.add.Tensor,
}


class Switch(nn.Module):
    """Quantize and dequantize one input of one operator as an observer found it; off at first.

    Unlike torchao's FakeQuantize it stands on an edge, not on a tensor: an activation that two layers read can be
    quantized for one of them.
    """

    def __init__(self, observer: Any) -> None:
        super().__init__()
        scale, zero_point = observer.calculate_qparams()
        self.on, self.watching = False, False
        self.quant_min, self.quant_max = int(observer.quant_min), int(observer.quant_max)
        self.per_channel = scale.numel() > 1 or hasattr(observer, "ch_axis")
        self.axis = int(getattr(observer, "ch_axis", 0))
        self.scale, self.zero_point = scale.float(), zero_point.to(torch.int32)
        self.seen_low, self.seen_high = float("inf"), float("-inf")
        self.clipped = self.values = 0
        self._weight: torch.Tensor | None = None

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest value that the codes can stand for; of activations only."""
        scale, zero_point = float(self.scale), int(self.zero_point)
        return (self.quant_min - zero_point) * scale, (self.quant_max - zero_point) * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.watching and not self.per_channel:
            self._watch(x)
        if not self.on:
            return x
        limits = self.quant_min, self.quant_max
        if not self.per_channel:
            return fake_quantize(x, self.scale, self.zero_point, *limits)
        if self._weight is None:
            self._weight = torch.fake_quantize_per_channel_affine(x, self.scale, self.zero_point, self.axis, *limits)
        return self._weight

    def _watch(self, x: torch.Tensor) -> None:
        low, high = self.range
        half = float(self.scale) / 2
        self.seen_low, self.seen_high = min(self.seen_low, float(x.min())), max(self.seen_high, float(x.max()))
        # Up to half a step outside of the range the error is no larger than that of rounding.
        self.clipped += int(((x < low - half) | (x > high + half)).sum())
        self.values += x.numel()


@dataclass
class _Sums:
    """Of one state of the network: predictions by clip, and the squared error of its features."""

    predictions: np.ndarray
    noise: float = 0.0

    def add(self, rows: np.ndarray, predictions: torch.Tensor, features: torch.Tensor, true: torch.Tensor) -> None:
        """Of these clips; features (b, features) of this state and of FP32."""
        self.predictions[rows] = predictions.double().numpy()
        self.noise += float((features.double() - true.double()).square().sum())

    def plain(self) -> dict[str, Any]:
        """What JSON takes."""
        values = [float(value) if np.isfinite(value) else None for value in self.predictions]
        return {"predictions": values, "noise": self.noise}


@dataclass
class LayeredNetwork:
    """A calibrated network whose layers can be quantized one by one.

    switches: of each layer of `layer_names` that the quantizer takes. macs: multiply-accumulates of each layer for one
    clip, 0 for what only adds or pools. features: the input of the head, or of its first layer.
    """

    module: fx.GraphModule
    switches: dict[str, list[Switch]]
    macs: dict[str, int]
    features: fx.Node
    _after: dict[str, set[fx.Node]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        owners = {id(switch): layer for layer, switches in self.switches.items() for switch in switches}
        for node in self.module.graph.nodes:
            if node.op == "call_module" and (layer := owners.get(id(self.module.get_submodule(node.target)))):
                self._after.setdefault(layer, set()).update(_descendants(node))

    def quantize(self, layers: Iterable[str], on: bool = True) -> None:
        """Switch the quantization of layers on or off."""
        for layer in layers:
            for switch in self.switches[layer]:
                switch.on = on

    def whole(self, clips: torch.Tensor) -> tuple[dict[fx.Node, Any], torch.Tensor, torch.Tensor]:
        """Every value of a pass, its predictions (B,) and pooled features (B, features)."""
        run = fx.Interpreter(self.module, garbage_collect_values=False)
        predictions = run.run(clips)
        return run.env, predictions, run.env[self.features]

    def after(self, layer: str, values: Mapping[fx.Node, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions and features of a pass that differs from the one of `values` in this layer: what does not
        depend on the layer is not computed again."""
        changed = self._after[layer]
        run = _Remembering(self.module, self.features)
        predictions = run.run(None, initial_env={node: value for node, value in values.items() if node not in changed})
        return predictions, run.remembered


class _Remembering(fx.Interpreter):
    """Keeps the value of one node and lets go of the others."""

    def __init__(self, module: fx.GraphModule, node: fx.Node) -> None:
        super().__init__(module)
        self.node = node
        self.remembered: Any = None

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n is self.node:
            self.remembered = value
        return value


def _descendants(node: fx.Node) -> set[fx.Node]:
    found, left = {node}, [node]
    while left:
        new = set(left.pop().users) - found
        found |= new
        left += new
    return found


def _layer_of(user: fx.Node, value: fx.Node, owners: Mapping[str, str]) -> str | None:
    """The layer that an operator's quantized input belongs to; None where quantizing it changes nothing."""
    if str(user.target).startswith("aten.max_pool"):
        # Quantization is monotone, so it commutes with the maximum, and the pool's output is quantized alike.
        return None
    found = owners.get(user.name)
    # What an average pool gives is quantized too, for whatever reads it, and what it reads is so for a product of
    # squeeze and excitation, which reads the same. It belongs to the layer that it came out of.
    while found is None and value.all_input_nodes:
        found, value = owners.get(value.name), value.all_input_nodes[0]
    if found is None:
        raise QrayError(f"the quantizer put an observer before {user.target}, which is no layer that sensitivity knows")
    return found


def layered(request: BuildRequest) -> LayeredNetwork:
    """Calibrate as PTQ does and give every layer switches of its own, all of them off.

    Raises:
        QrayError: there are no calibration clips, the quantizer left out or added a layer, or the network has no linear
            layer after its backbone.
    """
    if not request.calibration:
        raise QrayError("sensitivity: static quantization observes calibration clips, and there are none")
    module = observe_static(request)
    layers = quantizable(module.meta[LAYERS])
    owners = {node: layer.short for layer in layers for node in layer.nodes}
    switches: dict[str, list[Switch]] = {layer.short: [] for layer in layers}
    for node in list(module.graph.nodes):
        if node.op == "call_module" and isinstance(observer := module.get_submodule(node.target), ObserverBase):
            for user in list(node.users):
                value = node.args[0]
                layer = _layer_of(user, value, owners)
                if layer is not None:
                    name = f"switch_{sum(map(len, switches.values()))}"
                    switch = Switch(observer)
                    switches[layer].append(switch)
                    module.add_submodule(name, switch)
                    with module.graph.inserting_before(user):
                        value = module.graph.call_module(name, (value,))
                user.replace_input_with(node, value)
            module.graph.erase_node(node)
        elif node.target in OUT_OF_PLACE:
            node.target = OUT_OF_PLACE[node.target]
    module.recompile()
    # Pools over time stay in float.
    pools = {layer.short for layer in layers if layer.kind == "pool"}
    switches = {name: found for name, found in switches.items() if found or name not in pools}
    unquantized = [name for name, found in switches.items() if not found]
    if unquantized:
        raise QrayError(f"the quantizer left out {', '.join(unquantized)}")
    linear = {node for layer in module.meta[LAYERS] if layer.tail and layer.weighted for node in layer.nodes}
    heads = [node for node in module.graph.nodes if node.name in linear]
    if not heads:
        raise QrayError("the exported network has no linear layer after its backbone, where its features would be read")
    return LayeredNetwork(module, switches, {layer.short: layer.macs for layer in layers}, heads[0].args[0])


def measure_layers(
    network: LayeredNetwork, batches: Iterable[tuple[np.ndarray, torch.Tensor]], layers: Sequence[str], n_clips: int
) -> dict[str, Any]:
    """Pass clips through FP32, through all layers quantized, and for each of `layers` with it alone and all but it.

    batches: (index int64 (b,) below n_clips, clips uint8 (b, T, H, W, 3)). Returns what JSON takes: "fp32" and "all"
    (predictions, target units, null for a clip that never came), "signal" and "all_noise" (sums of squares of the
    pooled FP32 features, and of their error), and under "layers" by name "macs", "alone" and "all_but"
    ("predictions", "noise") and "range" (of the layer's activation input in FP32).
    """
    sums: dict[tuple[str, ...], _Sums] = defaultdict(lambda: _Sums(np.full(n_clips, np.nan)))
    every, signal = tuple(network.switches), 0.0
    watched = [switch for layer in layers for switch in network.switches[layer]]
    with torch.no_grad():
        for index, clips in batches:
            at_once = 1 if clips[0].numel() >= LARGE else CLIPS_AT_ONCE
            for at in range(0, len(index), at_once):
                rows, part = index[at : at + at_once], clips[at : at + at_once]
                network.quantize(every, False)
                for switch in watched:
                    switch.watching = True
                values, predictions, reference = network.whole(part)
                for switch in watched:
                    switch.watching = False
                sums["fp32",].add(rows, predictions, reference, reference)
                signal += float(reference.double().square().sum())
                for layer in layers:
                    network.quantize([layer])
                    sums["alone", layer].add(rows, *network.after(layer, values), reference)
                    network.quantize([layer], False)
                network.quantize(every)
                del values
                values, predictions, features = network.whole(part)
                sums["all",].add(rows, predictions, features, reference)
                for layer in layers:
                    network.quantize([layer], False)
                    sums["all_but", layer].add(rows, *network.after(layer, values), reference)
                    network.quantize([layer])
    network.quantize(every, False)
    whole = sums["all",].plain()
    return {
        "fp32": sums["fp32",].plain()["predictions"], "all": whole["predictions"],
        "signal": signal, "all_noise": whole["noise"],
        "layers": {
            layer: {
                "macs": network.macs[layer], "alone": sums["alone", layer].plain(),
                "all_but": sums["all_but", layer].plain(), "range": _range(network.switches[layer]),
            }
            for layer in layers
        },
    }  # fmt: skip


def _range(switches: Sequence[Switch]) -> dict[str, float | None]:
    """Of the first activation that the layer reads; a pool's input and output share their range."""
    switch = next(s for s in switches if not s.per_channel)
    low, high = switch.range
    seen = switch.values > 0
    return {
        "observer_low": low, "observer_high": high,
        "seen_low": switch.seen_low if seen else None, "seen_high": switch.seen_high if seen else None,
        "clipped_share": switch.clipped / switch.values if seen else None,
    }  # fmt: skip
