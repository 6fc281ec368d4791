"""Progress of long work: a rich bar in a terminal, a plain line every few seconds anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qray.terminal import open_console

PLAIN_LINE_EVERY_S = 10.0
Advance = Callable[[int], None]


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Advance]:
    """Yield `advance(n)`, to be called as each n of `total` units are done. Writes to stderr."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
                   TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, console=open_console(stderr=True)) as bar:
            task = bar.add_task(title, total=total)
            yield lambda n: bar.advance(task, n)
        return
    done, started, spoken = 0, time.monotonic(), time.monotonic()

    def advance(n: int) -> None:
        nonlocal done, spoken
        done += n
        now = time.monotonic()
        if now - spoken >= PLAIN_LINE_EVERY_S:
            spoken = now
            rate = done / (now - started)
            print(f"{title}: {done}/{total} {unit}, {rate:.1f} {unit}/s", file=sys.stderr, flush=True)

    yield advance
    print(f"{title}: {done}/{total} {unit} in {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
