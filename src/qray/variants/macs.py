"""Multiply-accumulates of each convolution and linear layer, the weights behind `int8_mac_share`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from qray.errors import QrayError

if TYPE_CHECKING:
    # An artifact loads without the code that trained it.
    from qray.model.regressor import VideoRegressor


#: Channels that oneDNN computes together.
CHANNEL_BLOCK = 16


def races(model: nn.Module) -> bool:
    """Whether oneDNN's INT8 convolutions of this network give other results in each call on several threads.

    Where a layer's channels are no multiple of the block, threads write past their part into that of others. Measured
    on AVX2 with torch 2.14.1 (AOTInductor) on 2 threads: predictions move by 5 to 18 points in 23 to 30 of 30 calls at
    widths 4, 8, 12 and 20, in none at 16; OpenVINO 2026.4.1, which has a oneDNN of its own, in 1 of 30 at width 4. On
    one thread, and in ONNX Runtime and FP32, in none.
    """
    return any(isinstance(m, nn.Conv2d) and m.out_channels % CHANNEL_BLOCK for m in model.modules())


def layer_macs(model: VideoRegressor, clip: torch.Tensor) -> dict[str, int]:
    """MACs of every Conv2d and Linear for one clip, by module name. clip: uint8 (1, T, H, W, 3)."""
    macs: dict[str, int] = {}
    hooks = []

    def count(name: str, module: nn.Conv2d | nn.Linear) -> None:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            each = module.weight[0].numel()
            macs[name] = output.numel() * each

        hooks.append(module.register_forward_hook(hook))

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            count(name, module)
    try:
        with torch.no_grad():
            model(clip)
    finally:
        for hook in hooks:
            hook.remove()
    return macs


def residual_adds(model: VideoRegressor) -> int:
    """Number of residual additions in the backbone."""
    return sum(type(module).__name__ == "BasicBlock" for module in model.modules())


def int8_share(macs: Mapping[str, int], int8_layers: set[str]) -> float:
    """Share of all MACs that is executed in INT8."""
    return sum(n for name, n in macs.items() if name in int8_layers) / sum(macs.values())


def check_coverage(
    macs: Mapping[str, int], int8_layers: set[str], int8_adds: int, adds: int, keep_fp32: tuple[str, ...]
) -> float:
    """The INT8 share of what an engine executes.

    Raises:
        QrayError: a layer that should be INT8 ran in FP32, a residual add did, or a layer of the tail, or one to be
            kept in FP32, ran in INT8. Layers are counted, not MACs: a downsampling convolution is a third of a percent
            of ResNet-18.
    """
    wanted = {name for name in macs if name.startswith("backbone.") and name not in keep_fp32}
    fp32, not_kept = sorted(wanted - int8_layers), sorted(int8_layers & set(keep_fp32))
    if fp32:
        raise QrayError(f"the engine runs {len(fp32)} of {len(wanted)} convolutions in FP32: {', '.join(fp32)}")
    if tail := sorted(name for name in int8_layers if not name.startswith("backbone.")):
        raise QrayError(f"the engine runs layers in INT8 that come after pooling over time: {', '.join(tail)}")
    if not_kept:
        raise QrayError(f"the engine runs layers in INT8 that keep_fp32 names: {', '.join(not_kept)}")
    if not keep_fp32 and int8_adds < adds:
        raise QrayError(f"the engine runs {adds - int8_adds} of {adds} residual adds in FP32")
    return int8_share(macs, int8_layers)


def resolve_keep_fp32(model: VideoRegressor, names: tuple[str, ...]) -> tuple[str, ...]:
    """Full module names of layers kept in FP32; "layer1.0.conv1" stands for "backbone.layer1.0.conv1".

    Raises:
        QrayError: a name is no convolution or linear layer of the model.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    resolved = tuple(name if name in layers else f"backbone.{name}" for name in names)
    unknown = [name for name, full in zip(names, resolved, strict=True) if full not in layers]
    if unknown:
        known = ", ".join(name.removeprefix("backbone.") for name in layers)
        raise QrayError(f"keep_fp32: no layer {', '.join(unknown)}; the model has {known}")
    return resolved
