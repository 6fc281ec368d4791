"""The backbones: what a study can name, and how wide it may be. Told without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Backbone:
    """One entry of the catalog."""

    #: "module:callable" that makes it, given the width. None: torchvision has it under this name.
    make: str | None = None
    #: Channels of its first stage as published, by which others scale; None where no other width can be had.
    width: int | None = None
    #: "frames": float32 (N, 3, H, W) -> float32 (N, `channels`), pooled over time afterwards; "clips": float32
    #: (N, 3, T, H, W) -> float32 (N, `channels`). The network has `channels` as an attribute.
    takes: Literal["frames", "clips"] = "frames"
    #: What torchvision has weights of, for its own width.
    weights: Literal["imagenet", "kinetics"] | None = None


_IMAGES = Backbone(weights="imagenet")
_VIDEOS = Backbone(takes="clips", weights="kinetics")
BACKBONES = {
    "resnet18": Backbone("qray.model.resnet:resnet18", 64, weights="imagenet"),
    "resnet34": Backbone("qray.model.resnet:resnet34", 64, weights="imagenet"),
    "resnet50": Backbone("qray.model.resnet:resnet50", 64, weights="imagenet"),
    "mobilenet_v2": Backbone("qray.model.networks:mobilenet_v2", 32, weights="imagenet"),
    "mobilenet_v3_small": Backbone("qray.model.networks:mobilenet_v3_small", 16, weights="imagenet"),
    "mobilenet_v3_large": Backbone("qray.model.networks:mobilenet_v3_large", 16, weights="imagenet"),
    "efficientnet_b0": Backbone("qray.model.networks:efficientnet_b0", 32, weights="imagenet"),
    "regnet_y_400mf": _IMAGES,
    "shufflenet_v2_x1_0": _IMAGES,
    "r3d_18": _VIDEOS,
    "mc3_18": _VIDEOS,
    "r2plus1d_18": _VIDEOS,
    "s3d": Backbone("qray.model.networks:s3d", takes="clips", weights="kinetics"),
}
