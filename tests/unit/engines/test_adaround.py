"""AdaRound: what a network computes decides which way its weights are rounded."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import request, smooth_clips, two_stages
from torch import fx, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from qray.engines import adaround, pt2e
from qray.engines.adaround import Learning, learn_rounding, round_adaptively, windows
from qray.study import Variant

#: Clips that calibrate nothing.
OTHERS = smooth_clips(6, seed=11)


NETWORK = two_stages()
CLIPS = [clip[None] for clip in smooth_clips(16, seed=200)]


@dataclass(frozen=True)
class Networks:
    """One network in FP32 with its batch-norm folded; with 4-bit weights, each to the nearest code; and by AdaRound."""

    fp32: fx.GraphModule
    nearest: fx.GraphModule
    learned: fx.GraphModule


@pytest.fixture(scope="module")
def networks() -> Networks:
    variant = Variant(name="w4", method="ptq", engine="inductor", weight_bits=4, observer="minmax")
    observed = pt2e.observe_static(request(variant, NETWORK))
    fp32 = pt2e.unobserved(copy.deepcopy(observed))
    nearest = pt2e.strip_unused(convert_pt2e(observed))
    learned = copy.deepcopy(nearest)
    round_adaptively(fp32, learned, CLIPS, 0, Learning(2048, steps=200))
    return Networks(fp32, nearest, learned)


def layers(module: fx.GraphModule) -> Iterator[tuple[fx.Node, torch.Tensor, torch.Tensor, tuple[int, int]]]:
    """Quantized layers: node, codes, scales, ends of the codes."""
    for node in module.graph.nodes:
        if str(node.target) in ("aten.conv2d.default", "aten.linear.default"):
            weights = node.args[1]
            if "dequantize_per_channel" in str(weights.target):
                codes, scale, _, _, low, high, _ = weights.args
                yield node, getattr(module, codes.target), getattr(module, scale.target), (low, high)


class Recorder(fx.Interpreter):
    """Keeps what every node computes: what comes after may change it in place."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.values[n.name] = value.detach().clone()
        return value


def values(module: fx.GraphModule, clips: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every node of a network."""
    recorder = Recorder(module)
    with torch.no_grad():
        recorder.run(clips)
    return recorder.values


def fp32_weights(reference: fx.GraphModule, name: str) -> torch.Tensor:
    (node,) = (node for node in reference.graph.nodes if node.name == name)
    weight = node.args[1]
    while weight.op != "get_attr":
        weight = weight.args[0]
    found: Any = reference
    for part in str(weight.target).split("."):
        found = getattr(found, part)
    return found.detach()


def test_every_code_is_that_below_or_that_above(networks: Networks) -> None:
    found = list(layers(networks.learned))
    assert len(found) == 10
    for node, codes, scale, ends in found:
        exact = fp32_weights(networks.fp32, node.name) / scale.view(-1, 1, 1, 1)
        assert ((codes == exact.floor().clamp(*ends)) | (codes == exact.ceil().clamp(*ends))).all()


def test_layers_come_closer_to_fp32_on_clips_that_calibrated_nothing(networks: Networks) -> None:
    """Each on what the network whose layers before it are quantized gives it, with what activation follows it."""
    truth, made = values(networks.fp32, OTHERS), values(networks.learned, OTHERS)
    ratios = []
    for node, codes, scale, ends in layers(networks.learned):
        weights, per_channel = fp32_weights(networks.fp32, node.name), scale.view(-1, 1, 1, 1)
        rest = [made[a.name] if isinstance(a, fx.Node) else a for a in node.args[2:]]
        after = torch.relu if "relu" in str(next(iter(node.users)).target) else lambda y: y
        errors = []
        for rounded in (codes, (weights / per_channel).round().clamp(*ends)):
            output = node.target(made[node.args[0].name], rounded * per_channel, *rest)
            errors.append(float((after(output) - after(truth[node.name])).square().mean()))
        ratios.append(errors[0] / errors[1])
    assert max(ratios) < 1
    assert np.median(ratios) < 0.8


def test_predictions_come_closer_to_fp32(networks: Networks) -> None:
    with torch.no_grad():
        fp32 = NETWORK(OTHERS)
        learned, nearest = ((m(OTHERS) - fp32).square().mean() for m in (networks.learned, networks.nearest))
    assert learned < nearest


def test_the_same_seed_gives_the_same_codes(networks: Networks) -> None:
    """Another one other codes: the seed is used."""

    def codes(seed: int) -> torch.Tensor:
        module = copy.deepcopy(networks.nearest)
        round_adaptively(networks.fp32, module, CLIPS[:4], seed, Learning(512, steps=20))
        return torch.cat([found.flatten() for _, found, _, _ in layers(module)])

    first = codes(3)
    assert torch.equal(first, codes(3))
    assert not torch.equal(first, codes(4))


CONVOLUTIONS = [
    nn.Conv1d(4, 6, 3, padding=2),
    nn.Conv2d(4, 6, 3, stride=2, padding=1),
    nn.Conv2d(4, 8, (1, 3), padding=(0, 2), dilation=(1, 2), groups=2),
    nn.Conv2d(4, 4, 3, groups=4, bias=False),
    nn.Conv3d(4, 6, (3, 3, 3), stride=(1, 2, 2), padding=(1, 1, 1)),
    nn.Linear(9, 5),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_a_layer_is_its_windows_times_its_weights(layer: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, *[9] * (layer.weight.dim() - 2)) if layer.weight.dim() > 2 else torch.randn(2, 7, 9)
    program = torch.export.export(layer, (x,))
    (node,) = (node for node in program.graph.nodes if node.op == "call_function")
    seen = windows(node, x, layer.weight.shape[2:])
    groups = getattr(layer, "groups", 1)
    axes = seen.dim() - layer.weight.dim() + 1
    parts = seen.reshape(*seen.shape[:axes], groups, -1)
    made = torch.einsum("...gk,gok->...go", parts, layer.weight.view(groups, len(layer.weight) // groups, -1))
    made = made.flatten(-2) + (layer.bias if layer.bias is not None else 0)
    expected = layer(x) if isinstance(layer, nn.Linear) else layer(x).movedim(1, -1)
    torch.testing.assert_close(made, expected)


def test_what_is_kept_between_layers_bounds_the_number_of_clips(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory does not grow with the calibration set."""
    seen: list[int] = []
    monkeypatch.setattr(adaround, "_round", lambda layer, walk, *rest: seen.append(len(walk.clips)))
    for kept in (1 << 40, 1 << 20, 0):
        monkeypatch.setattr(adaround, "KEPT_BYTES", kept)
        round_adaptively(networks.fp32, copy.deepcopy(networks.nearest), CLIPS, 0)
    every, some, one = seen[::10]
    assert 16 == every > some > one == 1


def test_rounding_is_learned_of_the_output_and_not_of_the_weights() -> None:
    """Of two inputs that are always equal and weigh 0.6 and 0.7: both up errs by 0.7, the second alone by 0.3."""
    x = torch.randn(1, 256, 1, generator=torch.Generator().manual_seed(0)).expand(1, 256, 2)
    weight, scale, bias = torch.tensor([[[0.6, 0.7]]]), torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    target = x @ weight.transpose(1, 2)
    codes = learn_rounding(
        weight, scale, (-8, 7), bias, x, target, lambda y: y, Learning(steps=300), torch.Generator().manual_seed(0)
    )
    assert codes.flatten().tolist() == [0, 1]
