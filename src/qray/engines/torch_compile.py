"""Programs in floats that `torch.compile` compiles on the GPU that they run on, when they are first called there."""

from __future__ import annotations

from pathlib import Path

from qray.engines import torch_export
from qray.engines.artifact import BuildRequest, Built, Predict

MODEL_FILE = torch_export.MODEL_FILE


def build(request: BuildRequest, folder: Path) -> Built:
    """Write `model.pt2`, the program that the eager engine has."""
    return torch_export.build(request, folder)


def load(folder: Path, built: Built, threads: int, device: str) -> Predict:
    """Have the program compiled as it is called."""
    return torch_export.load(folder, built, threads, device, compiled=True)
