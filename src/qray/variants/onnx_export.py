"""VideoRegressor -> ONNX, with what is constant folded, so that each convolution keeps its layer's name."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock

from qray.model.regressor import VideoRegressor
from qray.variants.artifact import BuildRequest
from qray.variants.tail import PREFIX


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


class WithFeatures(VideoRegressor):
    """Returns the backbone's output too, by which the tail is found in the graph of another engine."""

    forward = VideoRegressor.with_features  # type: ignore[assignment]


def folded_with_features(model: VideoRegressor) -> WithFeatures:
    """`fold_batch_norm`, as the class that shows where the tail begins; names of parameters stay what they are."""
    folded = fold_batch_norm(model)
    folded.__class__ = WithFeatures
    assert isinstance(folded, WithFeatures)
    return folded


def export_onnx(request: BuildRequest, path: Path) -> None:
    """Write the FP32 model: input `clips` uint8 (batch, T, H, W, 3), output `prediction` float32 (batch,).

    Nodes of the tail and the values between them are called `tail/...`.
    """
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            folded_with_features(request.model), (request.example().clone(),), str(path), dynamo=True, verbose=False,
            input_names=["clips"], output_names=["prediction", "features"], external_data=False,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), optimize=True,
        )  # fmt: skip
    model = onnx.load(str(path))
    _name_tail(model.graph)
    onnx.save(model, str(path))


def _name_tail(graph: Any) -> None:
    """Drop the output `features`, and call what comes after it by the names of the tail. Nodes come in order."""
    outputs = list(graph.output)
    del graph.output[:]
    graph.output.extend(value for value in outputs if value.name != "features")
    renamed = {"features": "features"}
    for node in graph.node:
        if any(name in renamed for name in node.input):
            node.name = f"{PREFIX}{len(renamed)}"
            for at, name in enumerate(node.output):
                renamed[name] = name if name == "prediction" else f"{node.name}.{at}"
                node.output[at] = renamed[name]
        for at, name in enumerate(node.input):
            node.input[at] = renamed.get(name, name)
    kept = [value for value in graph.value_info if value.name not in renamed]
    del graph.value_info[:]
    graph.value_info.extend(kept)
