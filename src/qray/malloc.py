"""How glibc's malloc holds memory, where its defaults cost time or memory; other C libraries do as they do."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

#: Options of mallopt(3), from glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
#: The bound that its threshold for maps reaches by itself, and the largest value of an option.
LARGEST_MMAP_BYTES, LARGEST_INT = 32 * 2**20, 2**31 - 1
#: The main thread's and one for all others; also the environment's MALLOC_ARENA_MAX.
ARENAS = 2


@contextmanager
def memory_kept() -> Iterator[None]:
    """Have it keep what is freed for what comes next.

    It would give it back to the system, which clears each page anew: a tenth of the CPU time of a QAT step.
    """
    libc = ctypes.CDLL(None)
    set_option, trim = getattr(libc, "mallopt", None), getattr(libc, "malloc_trim", None)
    if set_option is None or trim is None:
        yield
        return
    set_option(MMAP_THRESHOLD, LARGEST_INT)
    set_option(TRIM_THRESHOLD, LARGEST_INT)
    try:
        yield
    finally:
        set_option(MMAP_THRESHOLD, LARGEST_MMAP_BYTES)
        set_option(TRIM_THRESHOLD, 2 * LARGEST_MMAP_BYTES)
        trim(0)


@cache
def few_arenas() -> None:
    """Have the threads of this process share an arena, from now on.

    It would make one for each thread, up to eight a core, and an arena keeps what its threads once held: with the
    threads that Ray Data starts for each dataset a process grew by half a MiB a dataset.
    """
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(ARENA_MAX, ARENAS)
