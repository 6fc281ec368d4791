"""Which units wait for which: an end costs what waited for it, however long the queue is."""

from __future__ import annotations

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from qray.graph.unit import Unit


@dataclass(eq=False)
class Waiting:
    """A unit in the queue, its place there, and what it waits for."""

    unit: Unit
    place: int
    waits: set[Unit] = field(default_factory=set)


def _order(waiting: Waiting) -> tuple[bool, int]:
    """What holds no slot first, since it need not wait for one."""
    return waiting.unit.task.resources.slots > 0, waiting.place


class Queue:
    """Units that wait or run. `ready`: those that could be started, in the order in which they came.

    settle: ends a unit that waits for nothing and need not be run, and says whether it did.
    """

    def __init__(self, settle: Callable[[Unit], bool]) -> None:
        self._settle = settle
        self.ready: list[Waiting] = []
        #: What was added, or freed, and has not been looked at; and what waits, under each unit that it waits for.
        self._added: list[Waiting] = []
        self._behind: defaultdict[Unit, list[Waiting]] = defaultdict(list)
        #: How often each unit waits or runs, and how many of each kind do.
        self._pending: Counter[Unit] = Counter()
        self._kinds: Counter[str] = Counter()
        self._places, self._firsts = count(), count(-1, -1)

    def __bool__(self) -> bool:
        """Whether any unit waits or runs."""
        return bool(self._pending)

    def add(self, unit: Unit, first: bool = False) -> None:
        """A unit more, after those that are there, or before them."""
        self._added.append(Waiting(unit, next(self._firsts if first else self._places)))
        self._pending[unit] += 1
        self._kinds[unit.kind] += 1

    def busy(self, kind: str) -> bool:
        """Whether a unit of a kind waits or runs."""
        return self._kinds[kind] > 0

    def leave(self, unit: Unit) -> None:
        """A unit neither waits nor runs any more."""
        self._kinds[unit.kind] -= 1
        self._pending[unit] -= 1
        if not self._pending[unit]:
            del self._pending[unit]
            for waiting in self._behind.pop(unit, ()):
                waiting.waits.discard(unit)
                if not waiting.waits:
                    self._added.append(waiting)

    def look(self) -> None:
        """Put what was added, or freed, where it belongs; what is settled by that frees others."""
        while self._added:
            added, self._added = self._added, []
            for waiting in added:
                unit = waiting.unit
                waiting.waits = {o for o in (*unit.needs, *unit.settled, *unit.task.asked) if o in self._pending}
                for other in waiting.waits:
                    self._behind[other].append(waiting)
                if not waiting.waits and not self._settle(unit):
                    self.put(waiting)

    def put(self, waiting: Waiting) -> None:
        """Into `ready`, at its place: what could be started now, or was taken from there and could not."""
        insort(self.ready, waiting, key=_order)

    def states(self) -> Iterator[tuple[str, str]]:
        """(kind, "waiting" or "ready") of each unit that does not run."""
        behind = {id(waiting): waiting for each in self._behind.values() for waiting in each}
        yield from ((waiting.unit.kind, "waiting") for waiting in behind.values())
        yield from ((waiting.unit.kind, "ready") for waiting in (*self.ready, *self._added))
