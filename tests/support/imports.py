"""A data set and trained models of somebody else's, with pipelines of their own that share no code with qray."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from support.videos import write_video
from torch import Tensor, nn

SIZE, FRAMES, STRIDE, LENGTH = 40, 8, 2, 24


def make_set(root: Path, counts: tuple[int, int, int] = (12, 6, 6)) -> Path:
    """Videos of a disc that beats, in the EchoNet layout; the target is how far it contracts, in percent."""
    generator = np.random.default_rng(0)
    rows, y, x = [], *np.mgrid[:SIZE, :SIZE]
    for split, count in zip(("TRAIN", "VAL", "TEST"), counts, strict=True):
        for number in range(count):
            ejected, rate = generator.uniform(20, 75), generator.uniform(0.4, 0.9)
            radius = 14 * np.sqrt(1 - ejected / 100 * np.sin(rate * np.arange(LENGTH)) ** 2)
            disc = np.hypot(y - SIZE / 2, x - SIZE / 2)[None] < radius[:, None, None]
            grey = np.where(disc, 30, 150)[..., None] + generator.normal(0, 8, (LENGTH, SIZE, SIZE, 1))
            tinted = grey * np.array([1.0, 0.9, 0.7])
            name = f"{split.lower()}{number}"
            # Colour in full resolution: otherwise decoders differ in how they make it up.
            pictures = tinted.clip(0, 255).astype(np.uint8)
            write_video(root / "Videos" / f"{name}.avi", pictures, pixel_format="yuvj444p")
            rows.append({"FileName": name, "EF": f"{ejected:.2f}", "Split": split})
    with (root / "FileList.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["FileName", "EF", "Split"])
        writer.writeheader()
        writer.writerows(rows)
    return root


def names_of(root: Path, split: str) -> list[str]:
    """Names of a split's videos."""
    with (root / "FileList.csv").open(newline="") as file:
        return [row["FileName"] for row in csv.DictReader(file) if row["Split"] == split]


def their_clips(root: Path, name: str, windows: int = 3, stride: int = STRIDE) -> np.ndarray:
    """uint8 (windows, FRAMES, SIZE, SIZE, 3), evenly spread."""
    with av.open(str(root / "Videos" / f"{name}.avi")) as container:
        video = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    last = max(0, len(video) - 1 - stride * (FRAMES - 1))
    starts = [last // 2] if windows == 1 else [round(start) for start in np.linspace(0, last, windows)]
    return np.stack([video[start + stride * np.arange(FRAMES)] for start in starts])


def train_statistics(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the channels, as EchoNet-Dynamic's own code takes them."""
    pixels = np.concatenate([their_clips(root, name, 1).reshape(-1, 3) for name in names_of(root, "TRAIN")])
    return pixels.astype(np.float64).mean(0), pixels.astype(np.float64).std(0)


def their_input(clips: np.ndarray, mean: Any, std: Any) -> Tensor:
    """float32 (windows, 3, FRAMES, SIZE, SIZE)."""
    normalised = (clips.astype(np.float64) - mean) / std
    return torch.from_numpy(normalised.astype(np.float32)).permute(0, 4, 1, 2, 3).contiguous()


def write_predictions(
    path: Path, network: nn.Module, root: Path, mean: Any, std: Any, splits: Sequence[str] = ("TEST",), **how: int
) -> Path:
    """Their predictions, a line for each window, as EchoNet-Dynamic writes them."""
    network.eval()
    lines = []
    for split in splits:
        for name in names_of(root, split):
            with torch.no_grad():
                found = network(their_input(their_clips(root, name, **how), mean, std)).flatten().tolist()
            lines += [f"{name}.avi,{window},{value:.4f}" for window, value in enumerate(found)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class TheirNetwork(nn.Module):
    """A small video network that nobody here has seen: 3D convolutions, a branch, squeeze and excitation, and a head of
    two layers. float32 (B, 3, T, H, W) -> (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 16, 3, (1, 2, 2), 1, bias=False), nn.BatchNorm3d(16), nn.ReLU())
        self.left = nn.Sequential(nn.Conv3d(16, 16, (1, 3, 3), 1, (0, 1, 1), bias=False), nn.BatchNorm3d(16), nn.ReLU())
        self.right = nn.Sequential(nn.Conv3d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm3d(16))
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Conv3d(16, 8, 1), nn.ReLU(), nn.Conv3d(8, 16, 1))
        self.last = nn.Sequential(nn.Conv3d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm3d(32), nn.ReLU())
        self.regressor = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Both branches added, weighted by channel."""
        x = self.stem(x)
        x = torch.relu(self.left(x) + self.right(x))
        x = x * torch.sigmoid(self.squeeze(x))
        return self.regressor(self.last(x).mean((2, 3, 4)))


class TheirFrameNetwork(nn.Module):
    """A small image network with ReLUs, for one frame: float32 (N, 3, H, W) -> (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 16, 32)
        self.layers = nn.Sequential(*(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        ))  # fmt: skip
        self.top = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The mean over positions, and a linear head."""
        return self.top(self.layers(x).mean((2, 3)))


def settled(network: nn.Module, root: Path, steps: int = 12, frames: bool = False) -> nn.Module:
    """The network after a few steps of training on the set's targets, in eval mode: batch-norms have seen clips, and
    predictions differ from clip to clip."""
    torch.manual_seed(0)
    mean, std = train_statistics(root)
    with (root / "FileList.csv").open(newline="") as file:
        targets = {row["FileName"]: float(row["EF"]) for row in csv.DictReader(file)}
    names = names_of(root, "TRAIN")
    clips = torch.cat([their_input(their_clips(root, name, 1), mean, std) for name in names])
    wanted = torch.tensor([[targets[name]] for name in names])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    network.train()
    for _ in range(steps):
        seen = clips.transpose(1, 2).flatten(0, 1) if frames else clips
        found = network(seen).view(len(names), -1).mean(1, keepdim=True)
        loss = nn.functional.huber_loss(found, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()
