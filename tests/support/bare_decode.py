"""Decoding without Ray Data, in processes that must be able to import what they run."""

from __future__ import annotations

import numpy as np

from qray.data.decode import decode_frames, training_indices
from qray.study import ClipSpec

SPEC = ClipSpec(frames=16, image_size=64, stride=4)


def decode_chunk(job: tuple[list[str], np.ndarray, int]) -> np.ndarray:
    """uint8 (B, 1, T, S, S, 3) of (paths, their numbers of frames, seed)."""
    paths, n_frames, seed = job
    rng = np.random.default_rng(seed)
    wanted = [training_indices(int(n), SPEC, rng) for n in n_frames]
    return np.stack([decode_frames(p, w, SPEC.image_size) for p, w in zip(paths, wanted, strict=True)])
