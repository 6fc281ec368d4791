"""Backbones that torchvision has: its networks, less what they do after their features are pooled."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import efficientnet

from qray.errors import QrayError
from qray.model.catalog import BACKBONES

#: Of batch-norm's running statistics: PyTorch's default.
MOMENTUM = 0.1
#: What torchvision calls the part that classifies.
HEADS = ("fc", "classifier")


def headless(network: Any) -> Any:
    """The network without its classifier, and with the number of its features as `channels`.

    What it leaves of dropout and stochastic depth is nothing: an exported graph could not switch it off. Running
    statistics follow the batches by PyTorch's tenth: MobileNetV3 and S3D have a hundredth and a thousandth, which takes
    thousands of steps to forget where it began.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = MOMENTUM
    (name,) = (name for name in HEADS if hasattr(network, name))
    layers = [module for module in getattr(network, name).modules() if isinstance(module, nn.Linear | nn.Conv3d)]
    network.channels = layers[0].weight.shape[1]
    setattr(network, name, nn.Identity())
    return network


def from_torchvision(name: str) -> Any:
    """The network that torchvision has under this name."""
    return headless(models.get_model(name, weights=None))


def mobilenet(name: str, width: int) -> Any:
    """A MobileNet, all of whose widths are scaled. width: of the first convolution.

    Sandler et al., MobileNetV2, CVPR 2018; Howard et al., Searching for MobileNetV3, ICCV 2019.
    """
    return headless(models.get_model(name, weights=None, width_mult=width / _published(name)))


mobilenet_v2 = partial(mobilenet, "mobilenet_v2")
mobilenet_v3_small = partial(mobilenet, "mobilenet_v3_small")
mobilenet_v3_large = partial(mobilenet, "mobilenet_v3_large")


def efficientnet_b0(width: int) -> Any:
    """Tan and Le, EfficientNet, ICML 2019. width: of the first convolution."""
    factor = width / _published("efficientnet_b0")
    stages, last = efficientnet._efficientnet_conf("efficientnet_b0", width_mult=factor, depth_mult=1.0)
    return headless(efficientnet.EfficientNet(stages, dropout=0.0, stochastic_depth_prob=0.0, last_channel=last))


def _published(name: str) -> int:
    width = BACKBONES[name].width
    assert width is not None
    return width


def s3d(width: None) -> Any:
    """Xie et al., Rethinking Spatiotemporal Feature Learning, ECCV 2018, for clips of any size: the mean over all that
    is left of time and space, where torchvision averages over 2 x 7 x 7 first, which small clips do not have."""
    network = headless(models.get_model("s3d", weights=None))
    network.avgpool = nn.Identity()
    return network


def published_weights(name: str) -> Mapping[str, Tensor]:
    """torchvision's first weights of a backbone, less the classifier's.

    Raises:
        QrayError: they are not cached and cannot be downloaded.
    """
    of = BACKBONES[name].weights
    enum: Any = models.get_model_weights(name)
    weights = enum.IMAGENET1K_V1 if of == "imagenet" else enum.KINETICS400_V1
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, HTTPException, RuntimeError) as error:
        # RuntimeError: the download's hash is wrong.
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise QrayError(
            f"model.weights is {of}, but {weights.url} could not be had ({error}): connect this machine, put "
            f"the file into {cache} (TORCH_HOME moves it), or set model.weights to none"
        ) from error
    return {key: value for key, value in state.items() if key.split(".")[0] not in HEADS}
