"""What a stream delivers, and in which order: known before anything of it is read, and without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from qray.study import ClipSpec


@dataclass(frozen=True)
class StreamPlan:
    """What a stream delivers, apart from the clips themselves.

    mode "train": one random window a clip, epochs `first_epoch` to `epochs` - 1, each a seeded permutation cut to whole
    batches of `batch_size`. mode "eval": every window of every clip once, in manifest order.

    shards: workers who train on it together. Of each batch the first gets rows 0, shards, 2 * shards, ...; the next one
    those after these; and so on. All get the same number of rows, so that none waits at the end for ever: a batch that
    they do not divide, which is the only one of a data set smaller than `batch_size`, is filled up with rows without a
    clip (number -1), at most one for each of them. What they train on are the clips that one worker would.
    """

    spec: ClipSpec
    mode: Literal["train", "eval"]
    batch_size: int
    seed: int = 0
    first_epoch: int = 0
    epochs: int = 1
    cpus_per_task: float = 1.0
    timeout_s: float = 300.0
    shards: int = 1

    def steps_per_epoch(self, n_clips: int) -> int:
        """Batches in an epoch; a training set smaller than a batch is one short batch."""
        if self.mode == "eval":
            return -(-n_clips // self.batch_size)
        return max(1, n_clips // self.batch_size)

    def rows_per_epoch(self, n_clips: int) -> int:
        """Rows in an epoch: in training the tail that fills no batch is left out, another tail each epoch."""
        if self.mode == "eval":
            return n_clips
        return self.steps_per_epoch(n_clips) * self.shard_rows(n_clips) * self.shards

    def shard_rows(self, n_clips: int) -> int:
        """Rows of a batch that each shard gets; with one shard, all."""
        return -(-min(n_clips, self.batch_size) // self.shards) if self.mode == "train" else self.batch_size

    def shard_clips(self, n_clips: int, shard: int) -> Iterator[np.ndarray]:
        """What clips a shard trains on, batch by batch, by their numbers, int64 (rows,)."""
        rows = self.shard_rows(n_clips) * self.shards
        for epoch in range(self.first_epoch, self.epochs):
            order = permutation(n_clips, self.seed, epoch)[: self.steps_per_epoch(n_clips) * self.batch_size]
            for first in range(0, len(order), rows):
                yield order[first : first + rows][shard :: self.shards]

    def row_bytes(self) -> int:
        """Bytes of one decoded row."""
        windows = self.spec.windows if self.mode == "eval" else 1
        return windows * self.spec.frames * self.spec.image_size**2 * 3


@dataclass(frozen=True)
class Batch:
    """A batch as delivered: frames uint8 (B, W, T, S, S, 3), index int64 (B,) into the clips, errors of length B.

    errors holds "" for a good clip; the frames of a bad one are zeros. A row without a clip has index -1.
    """

    frames: np.ndarray
    index: np.ndarray
    errors: list[str]

    @property
    def ok(self) -> np.ndarray:
        """bool (B,): which clips were decoded."""
        return np.array([not error for error in self.errors])

    @property
    def failed(self) -> dict[int, str]:
        """The reason of each clip that could not be decoded, by its number."""
        return {int(index): error for index, error in zip(self.index, self.errors, strict=True) if error}


@lru_cache(maxsize=4)
def permutation(n_clips: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, int64 (n_clips,)."""
    return np.random.default_rng((seed, epoch)).permutation(n_clips)
