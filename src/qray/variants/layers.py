"""What of the network can be quantized by itself, by name. Apart from torchao, so that a driver can plan without it."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import BasicBlock

from qray.model.regressor import VideoRegressor

AVERAGE_POOL = "avgpool"


def layer_names(model: VideoRegressor) -> tuple[str, ...]:
    """What can be quantized by itself, in the order of the network; `keep_fp32` takes the convolutions' names.

    Every convolution (its input and its weights), every residual addition ("layer1.0.add": the operand that is not
    accumulated in FP32) and the average pool at the end.
    """

    def convolutions(root: nn.Module, prefix: str) -> list[str]:
        return [prefix + name for name, module in root.named_modules() if isinstance(module, nn.Conv2d)]

    names = ["conv1"]
    for block, module in model.backbone.named_modules():
        if isinstance(module, BasicBlock):
            names += [*convolutions(module, f"{block}."), f"{block}.add"]
    return (*names, AVERAGE_POOL)
