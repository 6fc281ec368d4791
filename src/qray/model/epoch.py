"""What an epoch of training leaves, as the driver reads it, without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: A checkpoint as `torch.save` writes it, uint8 (bytes,): an array, which Ray hands on without a copy, so that the
#: driver writes it to disk, or reads it from there, without having it in memory of its own.
Checkpoint = np.ndarray


@dataclass(frozen=True)
class EpochResult:
    """What an epoch leaves: mean loss (standardised units), its duration, that of all epochs so far (those before a
    checkpoint included), and a checkpoint."""

    epoch: int
    loss: float
    seconds: float
    seconds_so_far: float
    clips: int
    checkpoint: Checkpoint
