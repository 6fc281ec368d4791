"""What one clip costs on its way to a prediction, part by part: quantization speeds up only one of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qray.measure.latency import interleave
from qray.study import Measure

if TYPE_CHECKING:
    from qray.model.regressor import VideoRegressor

#: decode: from the file to uint8 frames of the study's size, resizing included. preprocessing: uint8 to normalised
#: float32, on the way into the network. head: pooling over time, the head, and back to target units.
PARTS = ("decode", "preprocessing", "backbone", "head")


def network_parts(model: VideoRegressor, clip: np.ndarray) -> dict[str, Callable[[], object]]:
    """Calls that run each part of a model in eval mode on what the part before it made of a clip.

    clip: uint8 (T, H, W, 3). What `head` returns is the model's prediction, float32 (1,).
    """
    import torch

    with torch.inference_mode():
        batch = torch.from_numpy(clip[None])
        frames = model.normalize(batch)
        features = model.backbone(frames)

    alone = torch.inference_mode()
    return {
        "preprocessing": alone(lambda: model.normalize(batch)),
        "backbone": alone(lambda: model.backbone(frames)),
        "head": alone(lambda: model.read_out(features, len(clip)) * model.target_std + model.target_mean),
    }


def in_turn(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """One call that is each of these in turn: clips differ in length and so in what they cost to decode."""
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def time_parts(
    decode: Sequence[Callable[[], np.ndarray]], model: VideoRegressor, settings: Measure
) -> dict[str, list[list[float]]]:
    """Milliseconds per call by part and block, interleaved; all parts together take `settings.seconds` or so.

    decode: one call for each clip, which returns uint8 (T, H, W, 3); the network sees the first. The files are in the
    system's cache after the first round, so that no disk is measured.
    """
    parts = {"decode": in_turn(decode), **network_parts(model, decode[0]())}
    return interleave(parts, settings.model_copy(update={"seconds": settings.seconds / len(PARTS)}))
