"""A second process, which does what this one does as the other of two workers: PyTorch's gloo, without Ray."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

#: A worker that waits for one that is gone, or never comes.
TIMEOUT_S = 120.0


def _join(rank: int, store: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT_S)
    )


def _leave() -> None:
    import torch.distributed as dist

    dist.destroy_process_group()


@contextmanager
def pair(store: str) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """A function that calls another with a rank and more in both processes, 0 in this one, and gives what each gave.

    store: a file that is not there yet, by which the two find each other.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        joined = other.submit(_join, 1, store)
        _join(0, store)
        joined.result(TIMEOUT_S)

        def both(work: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
            there = other.submit(work, 1, *arguments)
            here = work(0, *arguments)
            return here, there.result(TIMEOUT_S)

        try:
            yield both
        finally:
            left = other.submit(_leave)
            _leave()
            left.result(TIMEOUT_S)
