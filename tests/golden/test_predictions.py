"""Committed predictions of a fixed network: normalisation, frame order, pooling and head stay what they were.

To accept a change that is meant: `python tests/golden/test_predictions.py`, and say why in the commit.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
import torch

from qray.engines.artifact import BuildRequest
from qray.engines.registry import build_artifact, load_artifact
from qray.model.regressor import VideoRegressor
from qray.study import ClipSpec, Model, Variant

Pooling = Literal["mean", "mean_std", "max_min"]
GOLDEN = Path(__file__).with_name("predictions.json")
CLIP = ClipSpec(frames=5, image_size=32, sampling="uniform")
TARGET_MEAN, TARGET_STD = 55.0, 12.0


def fixed_model(pooling: Pooling) -> VideoRegressor:
    """Weights from NumPy's integer generator, which no release of torch and no CPU changes."""
    model = VideoRegressor(Model(width=4, pooling=pooling), TARGET_MEAN, TARGET_STD).eval()
    rng = np.random.default_rng(2020)
    for name, value in model.state_dict().items():
        if not value.is_floating_point() or name.startswith(("channel_", "target_")):
            continue
        uniform = rng.integers(-1000, 1001, tuple(value.shape)) / 1000
        if name.endswith("running_var"):
            uniform = 1 + uniform / 2
        elif value.dim() == 4:
            # The standard deviation that He et al. ask for, 1 / sqrt(3) being that of the draw.
            uniform = uniform * math.sqrt(2 / math.prod(value.shape[1:])) * math.sqrt(3)
        elif "bn" in name and name.endswith("weight"):
            uniform = 1 + uniform / 4
        value.copy_(torch.from_numpy(np.asarray(uniform)))
    return model


def fixed_clips() -> np.ndarray:
    """Three clips, uint8 (3, T, H, W, 3): a gradient that moves, in channels and directions that differ."""
    clip, frame, row, column, channel = np.indices((3, CLIP.frames, CLIP.image_size, CLIP.image_size, 3))
    moved = row * (3 + clip) + column * (5 - channel) + frame * frame * (7 + 9 * clip) + channel * 40
    return (moved % 256).astype(np.uint8)


def predictions(pooling: Pooling) -> np.ndarray:
    """Predictions of the FP32 eager artifact, target units."""
    with tempfile.TemporaryDirectory() as folder:
        variant = Variant(name="fp32", method="fp32", engine="eager")
        artifact = build_artifact(BuildRequest(variant, fixed_model(pooling), CLIP), "golden", Path(folder) / "fp32")
        return load_artifact(artifact)(fixed_clips())


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_predictions_are_those_that_were_committed(pooling: Pooling) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[pooling]
    np.testing.assert_allclose(predictions(pooling), golden, rtol=1e-3)


if __name__ == "__main__":
    values = {pooling: [round(float(v), 4) for v in predictions(pooling)] for pooling in get_args(Pooling)}
    GOLDEN.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
