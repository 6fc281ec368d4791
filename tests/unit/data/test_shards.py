"""Which clips each of several workers trains on: together those of one, the same number, and each once."""

from __future__ import annotations

import numpy as np
import pytest

from qray.data.stream_plan import StreamPlan
from qray.study import ClipSpec

CASES = [(24, 8, 2), (25, 8, 4), (5, 8, 2), (5, 8, 4), (4, 8, 4), (16, 16, 16)]


def plan(batch: int, shards: int, epochs: int = 3) -> StreamPlan:
    return StreamPlan(ClipSpec(), "train", batch, seed=3, first_epoch=1, epochs=epochs, shards=shards)


@pytest.mark.parametrize(("n_clips", "batch", "shards"), CASES)
def test_workers_have_the_batches_of_one_among_them(n_clips: int, batch: int, shards: int) -> None:
    alone = list(plan(batch, 1).shard_clips(n_clips, 0))
    parts = zip(*(plan(batch, shards).shard_clips(n_clips, shard) for shard in range(shards)), strict=True)
    for whole, each in zip(alone, parts, strict=True):
        assert sorted(np.concatenate(each)) == sorted(whole)
        assert all(len(part) > 0 for part in each)
        for shard, part in enumerate(each):
            assert part.tolist() == whole[shard::shards].tolist()


@pytest.mark.parametrize(("n_clips", "batch", "shards"), CASES)
def test_all_read_the_same_number_of_rows_of_which_one_at_most_is_without_a_clip(
    n_clips: int, batch: int, shards: int
) -> None:
    shared, alone = plan(batch, shards), plan(batch, 1)
    assert shared.rows_per_epoch(n_clips) % shards == 0
    assert 0 <= shared.rows_per_epoch(n_clips) - alone.rows_per_epoch(n_clips) < shards
    assert shared.steps_per_epoch(n_clips) == alone.steps_per_epoch(n_clips)
    assert shared.shard_rows(n_clips) * shards * shared.steps_per_epoch(n_clips) == shared.rows_per_epoch(n_clips)


def test_an_epoch_holds_each_clip_once_where_batches_fill_it() -> None:
    each = [np.concatenate(list(plan(8, 4, epochs=2).shard_clips(24, shard))) for shard in range(4)]
    assert sorted(np.concatenate(each)) == list(range(24))
