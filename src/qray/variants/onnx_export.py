"""VideoRegressor -> ONNX, with what is constant folded, so that each convolution keeps its layer's name."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock

from qray.model.regressor import VideoRegressor
from qray.variants.artifact import BuildRequest


def fold_batch_norm(model: VideoRegressor) -> VideoRegressor:
    """A copy in which every convolution has taken in the batch-norm that follows it, and the first one the scale of its
    channels; the same function."""
    model = copy.deepcopy(model).eval()

    def fold(owner: nn.Module, conv: str, norm: str) -> None:
        convolution, batch_norm = owner.get_submodule(conv), owner.get_submodule(norm)
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(batch_norm, nn.BatchNorm2d)
        setattr(owner, conv, fuse_conv_bn_eval(convolution, batch_norm))
        setattr(owner, norm, nn.Identity())

    fold(model.backbone, "conv1", "bn1")
    for module in model.backbone.modules():
        if isinstance(module, BasicBlock):
            fold(module, "conv1", "bn1")
            fold(module, "conv2", "bn2")
            if module.downsample is not None:
                fold(module.downsample, "0", "1")
    _fold_channel_scale(model)
    return model


def _fold_channel_scale(model: VideoRegressor) -> None:
    """conv(x s + t) = conv'(x + t / s) with weights w s: one pass over the pixels less, the padding still zero."""
    scale = model.channel_scale
    if scale is not None:
        with torch.no_grad():
            model.backbone.conv1.weight *= scale
            model.channel_shift /= scale
        model.channel_scale = None


def export_onnx(request: BuildRequest, path: Path) -> None:
    """Write the FP32 model: input `clips` uint8 (batch, T, H, W, 3), output `prediction` float32 (batch,)."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            fold_batch_norm(request.model), (request.example().clone(),), str(path), dynamo=True, verbose=False,
            input_names=["clips"], output_names=["prediction"], external_data=False,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), optimize=True,
        )  # fmt: skip
