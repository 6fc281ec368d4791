"""How a stream is cut into datasets and tasks: soon a first batch, little spent on tasks, all done at the same time."""

from __future__ import annotations

import pytest

from qray.data.blocks import block_sizes, parts

CASES = [(10_000, 16, 160, 2), (7, 16, 160, 4), (300, 16, 5, 2), (1, 1, 1, 1), (4096, 8, 1000, 64)]


@pytest.mark.parametrize(("total", "batch", "most", "parallel"), CASES)
def test_the_sizes_sum_to_all_clips_and_respect_the_limit(total: int, batch: int, most: int, parallel: int) -> None:
    sizes = block_sizes(total, batch, most, parallel)
    assert sum(sizes) == total
    assert all(0 < size <= most for size in sizes)


def test_the_first_task_decodes_one_batch() -> None:
    assert block_sizes(10_000, 16, 160, 2)[0] == 16


def test_most_clips_come_in_large_blocks() -> None:
    sizes = block_sizes(10_000, 16, 160, 2)
    assert sum(size for size in sizes if size == 160) > 0.8 * 10_000


def test_blocks_are_whole_batches_but_for_the_last() -> None:
    assert all(size % 16 == 0 for size in block_sizes(1003, 16, 150, 2)[:-1])


def test_the_last_tasks_are_small_so_that_all_end_together() -> None:
    assert block_sizes(10_000, 16, 160, 4)[-1] <= 16


@pytest.mark.parametrize(
    ("total", "batch", "most"), [(1000, 16, 160), (1000, 16, 5), (7, 16, 160), (320, 16, 160), (1, 1, 1)]
)
def test_the_datasets_of_a_stream_are_whole_batches_and_hold_all_rows_in_order(
    total: int, batch: int, most: int
) -> None:
    found = parts(total, batch, most)
    assert [row for rows in found for row in rows] == list(range(total))
    assert all(len(rows) % batch == 0 for rows in found[:-1])
    assert all(0 < len(rows) <= max(batch, most) for rows in found)


def test_the_datasets_of_a_stream_are_alike_in_size_and_few() -> None:
    sizes = [len(rows) for rows in parts(1001 * 16, 16, 160 * 16)]
    assert len(sizes) == 7
    assert max(sizes) - min(sizes) <= 2 * 16
