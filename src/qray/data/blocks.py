"""How a stream is cut: into datasets, and those into the blocks that its tasks decode."""

from __future__ import annotations

from itertools import pairwise


def parts(total: int, batch: int, most: int) -> list[range]:
    """Rows of each dataset of a stream: alike in size, whole batches, no more than `most` where a batch is not."""
    batches = -(-total // batch)
    number = -(-batches // max(1, most // batch))
    edges = [min(total, batch * (batches * i // max(1, number))) for i in range(number + 1)]
    return [range(first, last) for first, last in pairwise(edges)]


def block_sizes(total: int, batch: int, most: int, parallel: int) -> list[int]:
    """Clips of each decode task, in order.

    A task costs some 0.1 s whatever it decodes, so that large ones waste least; but the first batch should come soon,
    and the last tasks should end together. Hence one batch at first, twice as many with each turn of the `parallel`
    tasks, up to `most`, and less again when little is left. Whole batches, where they fit: those are slices of one
    block rather than copies out of two.
    """
    sizes: list[int] = []
    left, ramp = total, batch
    while left:
        size = min(most, ramp, max(batch, left // (2 * parallel)), left)
        if size > batch:
            size -= size % batch
        sizes.append(size)
        left -= size
        if len(sizes) % parallel == 0:
            ramp *= 2
    return sizes
