"""What an epoch of training leaves, as the driver reads it, without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EpochResult:
    """What an epoch leaves: mean loss (standardised units), its duration, that of all epochs so far (those before a
    checkpoint included), and a checkpoint as bytes."""

    epoch: int
    loss: float
    seconds: float
    seconds_so_far: float
    clips: int
    checkpoint: bytes
