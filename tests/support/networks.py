"""Small networks with realistic activations, and clips for them: what variants, measuring and golden tests share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor, nn

from qray.engines.artifact import BuildRequest
from qray.model.regressor import VideoRegressor, build_regressor
from qray.model.training import TrainBatch
from qray.study import ClipSpec, Model, Variant

TINY = Model(width=8, pooling="mean_std")
TINY_CLIP = ClipSpec(frames=4, image_size=48, sampling="uniform")
FULL = Model(width=64, pooling="mean_std")
FULL_CLIP = ClipSpec(frames=8, image_size=112, sampling="uniform")
TARGET_MEAN, TARGET_STD = 55.0, 12.0
#: Of `two_stages`.
CONVOLUTIONS, RESIDUAL_ADDS = 10, 4


def smooth_clips(n: int, clip: ClipSpec = TINY_CLIP, seed: int = 0) -> torch.Tensor:
    """Blurred random motion, uint8 (n, T, H, W, 3): unlike white noise, clips differ from one another to a network."""
    generator = torch.Generator().manual_seed(seed)
    size = clip.image_size
    coarse = torch.rand((n, 3, clip.frames, 6, 6), generator=generator)
    fine = nn.functional.interpolate(coarse, size=(clip.frames, size, size), mode="trilinear", align_corners=False)
    contrast = 0.3 + torch.rand((n, 1, 1, 1, 1), generator=generator)
    return ((fine - 0.5) * contrast + 0.5).mul(255).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def realistic_model(
    config: Model = TINY, clip: ClipSpec = TINY_CLIP, seed: int = 0, passes: int = 8, batch: int = 8, stages: int = 4
) -> VideoRegressor:
    """Random weights, batch-norm statistics of real passes, and predictions that spread as the target does. A copy of
    its own for every caller."""
    return copy.deepcopy(_realistic_model(config, clip, seed, passes, batch, stages))


def two_stages() -> VideoRegressor:
    """The first half of a tiny ResNet-18, in which there is every kind of layer: what takes minutes to export, quantize
    and compile for all of it takes less than half of them."""
    return realistic_model(stages=2)


@cache
def _realistic_model(
    config: Model, clip: ClipSpec, seed: int, passes: int, batch: int, stages: int
) -> VideoRegressor:  # fmt: skip
    model = build_regressor(config, TARGET_MEAN, TARGET_STD, seed)
    if stages < 4:
        _cut(model, stages)
    with torch.no_grad():
        model.train()
        for step in range(passes):
            model(smooth_clips(batch, clip, seed=100 + step))
        model.eval()
        standardised = (model(smooth_clips(2 * batch, clip, seed=99)) - TARGET_MEAN) / TARGET_STD
        spread = float(standardised.std())
        model.head.bias.sub_(standardised.mean()).div_(spread)
        model.head.weight.div_(spread)
    return model


def _cut(model: VideoRegressor, stages: int) -> None:
    """Let features be those of a stage of ResNet-18 that is not its last."""
    for after in range(stages + 1, 5):
        setattr(model.backbone, f"layer{after}", nn.Identity())
    whole, features = model.head, model.head.in_features >> (4 - stages)
    model.head = nn.Linear(features, 1)
    model.head.load_state_dict({"weight": whole.weight[:, :features], "bias": whole.bias})


class Forms(nn.Module):
    """Convolutions over time as networks have them: grouped, dilated, with padding by name, before every kind of
    activation, side by side, pooled, and added to one another. float32 (B, 3, T, H, W) -> (B, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 16, 3, (1, 2, 2), 1, bias=False), nn.BatchNorm3d(16), nn.SiLU())
        self.depthwise = nn.Sequential(nn.Conv3d(16, 16, 3, padding="same", groups=16), nn.BatchNorm3d(16), nn.ReLU6())
        self.left = nn.Sequential(nn.Conv3d(16, 16, 1), nn.Hardswish())
        self.right = nn.Sequential(nn.Conv3d(16, 16, (3, 1, 1), 1, (2, 0, 0), (2, 1, 1)), nn.ReLU())
        self.here, self.there = nn.Conv3d(32, 32, 1), nn.Conv3d(32, 32, (1, 3, 3), 1, (0, 1, 1))
        self.pool, self.last = nn.MaxPool3d((1, 2, 2)), nn.Conv3d(32, 32, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Branches put side by side, then added to what comes of them."""
        x = self.depthwise(self.stem(x))
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = torch.relu(self.here(x) + self.there(x)) + x
        return torch.relu(self.last(self.pool(x))).mean((2, 3, 4))


def request(variant: Variant, model: VideoRegressor, clip: ClipSpec = TINY_CLIP, batches: int = 4) -> BuildRequest:
    """A build request that calibrates on `batches` batches of 4 clips where its method observes any, and compares what
    it deploys on others."""
    calibration = [smooth_clips(4, clip, seed=200 + i) for i in range(batches)] if variant.method == "ptq" else []
    validation = [smooth_clips(4, clip, seed=300 + i) for i in range(2)] if variant.method in ("ptq", "qat") else []
    return BuildRequest(variant, model, clip, calibration, validation=validation)


def toy_batches(steps: int, batch: int = 8, clip: ClipSpec = TINY_CLIP, seed: int = 0) -> Iterator[TrainBatch]:
    """Clips whose target is their brightness: 55 +- 12 or so, learnable in a few steps."""
    for step in range(steps):
        clips = smooth_clips(batch, clip, seed=seed * 10_000 + step)
        brightness = torch.linspace(-1, 1, batch)
        shifted = (clips.float() + 60 * brightness.view(-1, 1, 1, 1, 1)).clamp(0, 255).to(torch.uint8)
        yield TrainBatch(shifted, TARGET_MEAN + 20 * brightness, torch.ones(batch))
