"""Toy units on the local backend: scheduling, failing and resuming in milliseconds."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from support.local_backend import LocalBackend

from qray.graph.missing import lacking
from qray.graph.runner import Runner
from qray.graph.store import Store
from qray.graph.unit import Graph, Resources, Skipped, Task, Unit


@dataclass
class Toy(Task):
    """Calls `work`, whose value is its record's; "skip" as a value is a reason to skip it."""

    work: Callable[..., Any] = lambda: 1
    heard_items: list[Any] = field(default_factory=list)
    resources: Resources = field(default_factory=Resources)
    silence_s: float = 60.0
    #: Values with which it is not through.
    again: Collection[Any] = ()
    #: What each poll says.
    polled: bool = False
    #: What its work may reserve.
    groups: Collection[str] = ()

    def poll(self, unit: Unit, run: Any) -> bool:
        return self.polled

    def start(self, unit: Unit, run: Any) -> Any:
        return run.submit(unit, self.work)

    def heard(self, unit: Unit, run: Any, item: Any) -> None:
        self.heard_items.append(item)

    def abandoned(self, unit: Unit, run: Any) -> None:
        if self.groups:
            run.free(self.groups)

    def finish(self, unit: Unit, run: Any, value: Any) -> dict[str, Any] | None:
        if value == "skip":
            raise Skipped("no engine")
        return None if value in self.again else {"value": value}


def toy(
    name: str, work: Callable[..., Any] = lambda: 1, *needs: Unit, settled: tuple[Unit, ...] = (), **more: Any
) -> Unit:  # fmt: skip
    """A unit of kind "toy" that needs others."""
    return Unit("toy", name, Toy(work, **more), {"name": name} | {unit.name: unit for unit in needs}, settled=settled)


@dataclass
class Ran:
    """What came of a run: status and reason of each unit by name, what was said, and the counts that were told."""

    status: Mapping[str, str]
    reason: Mapping[str, str | None]
    said: str
    told: Sequence[Mapping[tuple[str, str], int]]


def run_toys(
    out: Path, *units: Unit, holders: int = 2, gpus: int = 0, wanted: Collection[Unit] | None = None,
    on_end: Callable[[], None] = lambda: None, later: Collection[Unit] = (),
) -> Ran:  # fmt: skip
    """Run units, each after those that it needs, into OUT; another call is to run those of `later`."""
    store, backend, said = Store(out), LocalBackend(holders, gpus), io.StringIO()
    runner = Runner(store, backend, Console(file=said), on_end=on_end)
    runner.context = SimpleNamespace(submit=backend.submit, runner=runner)
    graph = Graph(units)
    runner.run(lacking(graph, list(graph) if wanted is None else wanted, store), later)
    ends = {unit.name: runner.results.get(store.key(unit)) for unit in units}
    known = {name: end for name, end in ends.items() if end is not None}
    states, reasons = ({n: e.status for n, e in known.items()}, {n: e.reason for n, e in known.items()})
    return Ran(states, reasons, said.getvalue(), backend.told)


def fails() -> None:
    """Work that raises."""
    raise ValueError("no luck")


def never() -> None:
    """Work that is not heard of any more while its test lasts."""
    threading.Event().wait(30)


def counts() -> Iterator[int]:
    """Work that yields."""
    # Ray sends into generators, which a range does not take.
    yield from (n for n in range(4))
