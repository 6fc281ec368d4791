"""The model: a backbone on each frame and pooling over time, or a backbone on clips; and a linear head. Takes uint8
clips, returns target units."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn

from qray.model.catalog import BACKBONES
from qray.model.epoch import Checkpoint
from qray.model.training import load_checkpoint
from qray.study_model import Channels, Imported, Model

#: Mean and standard deviation of the channels that torchvision's weights saw, ImageNet's for networks on frames and
#: Kinetics-400's for those on clips (its presets), whether or not a study takes the weights.
CHANNELS = {
    "frames": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clips": ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
}
#: Where each layout has the axes of (B, T, H, W, 3), or of (B*T, H, W, 3), and the shape of a number for each channel.
LAYOUTS = {
    "frames": ((0, 3, 1, 2), (1, 3, 1, 1)),
    "BCTHW": ((0, 4, 1, 2, 3), (1, 3, 1, 1, 1)),
    "BTCHW": ((0, 1, 4, 2, 3), (1, 1, 3, 1, 1)),
    "BTHWC": ((0, 1, 2, 3, 4), (1, 1, 1, 1, 3)),
}
#: float32 values in an AVX-512 register.
SIMD_CHANNELS = 16
# Under this variance (in units of squared activations) the gradient of a square root is noise.
STD_EPSILON = 1e-5


class VideoRegressor(nn.Module):
    """Predict one number per clip.

    Input: uint8 (B, T, H, W, 3), RGB. Output: float32 (B,), in units of the target.
    `forward` normalises, so that a clip stays uint8 until it is on the device and an artifact needs no preprocessing.
    """

    #: Whether blue comes first.
    reversed = False
    channel_scale: Tensor | None
    channel_shift: Tensor
    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self, config: Model | Imported, target_mean: float = 0.0, target_std: float = 1.0, program: bytes | None = None
    ) -> None:
        """program: of an imported graph, as `programs.read_program` takes it; scale and shift of what is imported are
        its own."""
        super().__init__()
        self.memory_format = torch.contiguous_format
        self.program = program
        if isinstance(config, Imported):
            from qray.model.imported import imported_parts

            parts: tuple[Any, Any] = imported_parts(config.source, program)
            self.layout = config.input.layout
            self.pooling: str | None = "outputs" if self.layout == "frames" else None
        else:
            takes = BACKBONES[config.backbone].takes
            self.pooling, self.layout = config.pooling, "frames" if takes == "frames" else "BCTHW"
            backbone = _backbone(config)
            head = nn.Linear(backbone.channels * (2 if config.pooling in ("mean_std", "max_min") else 1), 1)
            if config.head_init == "zero":
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)
            parts = backbone, head
        self.backbone, self.head = parts
        of_channels = torch.zeros(LAYOUTS[self.layout][1])
        self.register_buffer("channel_scale", of_channels.clone())
        self.register_buffer("channel_shift", of_channels)
        self.register_buffer("target_mean", torch.tensor(float(target_mean)))
        self.register_buffer("target_std", torch.tensor(float(target_std)))
        if isinstance(config, Imported):
            self.take(config)
        else:
            self._normalize_by(*CHANNELS[BACKBONES[config.backbone].takes], 255.0)

    def take(self, config: Imported) -> None:
        """Take clips, and give predictions, as an imported model's description says."""
        self.reversed = config.input.colour == "bgr"
        self._normalize_by(config.input.mean, config.input.std, 255.0 if config.input.range == "0-1" else 1.0)
        self.target_mean.fill_(config.shift)
        self.target_std.fill_(config.scale)

    def _normalize_by(self, mean: Channels, std: Channels, full_scale: float) -> None:
        means, stds = (torch.tensor(values).view_as(self.channel_shift) for values in (mean, std))
        self.channel_scale, self.channel_shift = 1 / (full_scale * stds), -means / stds

    @property
    def target_spread(self) -> float:
        """Standard deviation of the TRAIN targets, target units; 1 where targets are not standardised."""
        return float(self.target_std)

    def channels_last(self) -> VideoRegressor:
        """Compute in channels-last layout, which halves the time of a training step on an AVX2 CPU. Returns self.

        Artifacts keep PyTorch's default layout, so that FP32 eager is what `model(clips)` costs its users today; so
        does a network narrower than a SIMD register: there oneDNN's weight gradient of a strided 1x1 convolution in
        channels-last layout is wrong and written past the end of its buffer, another one each time (torch 2.14.1,
        oneDNN 3.12, its issue 6035: fewer than 8 channels with AVX2, as was measured; fewer than 16 with AVX-512).
        """
        convolutions = [module for module in self.backbone.modules() if isinstance(module, nn.Conv2d)]
        if self.layout != "frames" or any(convolution.out_channels < SIMD_CHANNELS for convolution in convolutions):
            return self
        self.memory_format = torch.channels_last
        return self.to(memory_format=torch.channels_last)

    def normalize(self, clips: Tensor) -> Tensor:
        """uint8 (B, T, H, W, 3) -> what the backbone takes, float32 in its layout, channels normalised."""
        pixels = clips.flatten(0, 1) if self.layout == "frames" else clips
        pixels = pixels.flip(-1) if self.reversed else pixels
        frames = pixels.permute(LAYOUTS[self.layout][0]).to(torch.float32, memory_format=self.memory_format)
        # An export may have moved the scale into the first convolution.
        scaled = frames if self.channel_scale is None else frames * self.channel_scale
        return scaled + self.channel_shift

    def read_out(self, features: Tensor, n_frames: int) -> Tensor:
        """Pool over time what came of frames, then the head: float32 (B*T, channels), or (B, channels) of a backbone on
        clips -> float32 (B,), standardised target."""
        if self.pooling is None:
            return self.head(features).flatten()
        if self.pooling == "outputs":
            return self.head(features).view(-1, n_frames).mean(1)
        features = features.view(-1, n_frames, features.shape[1])
        if self.pooling == "mean":
            pooled = features.mean(1)
        elif self.pooling == "mean_std":
            mean = features.mean(1)
            variance = (features - mean.unsqueeze(1)).square().mean(1)
            pooled = torch.cat([mean, (variance + STD_EPSILON).sqrt()], 1)
        else:
            pooled = torch.cat([features.amax(1), features.amin(1)], 1)
        return self.head(pooled).squeeze(1)

    def forward(self, clips: Tensor) -> Tensor:
        """uint8 (B, T, H, W, 3) -> float32 (B,), target units."""
        return self.with_features(clips)[0]

    def with_features(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and the backbone's output, float32 (B*T or B, channels), where the tail begins."""
        features = self.backbone(self.normalize(clips))
        standardised = self.read_out(features, clips.shape[1])
        return standardised * self.target_std + self.target_mean, features


def _backbone(config: Model) -> Any:
    """A fresh network of the catalog."""
    make = BACKBONES[config.backbone].make
    if make is not None:
        return resolve_name(make)(config.width)
    from qray.model.networks import from_torchvision

    return from_torchvision(config.backbone)


def build_regressor(config: Model, target_mean: float, target_std: float, seed: int) -> VideoRegressor:
    """A fresh model with seeded initial weights, or torchvision's where the study asks for them.

    Raises:
        QrayError: torchvision's weights are wanted, and cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoRegressor(config, target_mean, target_std)
    if config.weights != "none":
        from qray.model.networks import published_weights

        model.backbone.load_state_dict(published_weights(config.backbone))
    return model


def model_from_state(config: Model | Imported, checkpoint: bytes | Checkpoint) -> VideoRegressor:
    """A trained model in eval mode from a checkpoint."""
    state = load_checkpoint(checkpoint)
    program = state.get("program")
    model = VideoRegressor(config, program=None if program is None else program.numpy().tobytes())
    model.load_state_dict(state["model"])
    return model.eval()
