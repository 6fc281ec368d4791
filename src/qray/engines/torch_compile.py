"""Programs in floats that `torch.compile` compiles on the GPU that they run on, when they are first called there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qray.engines import torch_export
from qray.engines.artifact import BuildRequest, Built, Predict

MODEL_FILE = torch_export.MODEL_FILE


def build(request: BuildRequest, folder: Path) -> Built:
    """Write `model.pt2`, the program that the eager engine has."""
    return torch_export.build(request, folder)


def load(folder: Path, built: Built, threads: int, device: str) -> Predict:
    """Have the program compiled whole. The first call compiles for its batch, the second of another size for any."""
    return torch_export.load(folder, built, threads, device, _compiled)


def _compiled(module: Any) -> Any:
    # What cannot be compiled is an error: otherwise it would run eagerly, and the row would not say so.
    return torch.compile(module, fullgraph=True)
