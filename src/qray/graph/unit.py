"""A unit: one piece of work, named by a hash of exactly what its outcome depends on, and the task that does it."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar


class Skipped(Exception):
    """A unit that cannot be had here; its message is the reason."""


@dataclass
class Result:
    """How a unit ended: "ok" with its `record`, else `status` (failed or skipped) and `reason`. `record` of one that is
    not "ok" holds what else is known, such as the versions."""

    status: str
    record: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Resources:
    """Where a task may run, and what it holds there."""

    #: Slots of the cluster that it takes at most, of which one is left to others; 0 for work of the driver's own.
    slots: int = 1
    #: All of its slots or none: it cannot do with fewer.
    whole: bool = False
    #: A GPU, where the cluster has one; with `whole`, one a slot.
    gpu: bool = False
    #: A GPU or nothing: it cannot do without.
    on_gpu: bool = False
    #: What it starts takes a GPU a slot, where the cluster has any; it takes none itself.
    inner_gpus: bool = False
    #: A node to itself, and only while nothing else runs.
    exclusive: bool = False
    #: Its process is used again only by work that names the same: what it leaves changed would change what others do.
    processes: str = ""
    #: On the node of the driver, and without a CPU of its own: its children hold slots and GPUs.
    here: bool = False


class Task(ABC):
    """How units of a kind are done. All of this happens in the driver; `start` hands the work to the backend.

    `run` is whatever the runner was given as context.
    """

    #: Raised when the code changes what comes out: only what depends on it is done again.
    version: ClassVar[int] = 1
    #: Seconds without a word after which it has failed.
    silence_s: float = 3600.0
    resources: Resources = Resources()
    #: Units that it has added to the run: when they have ended it is started again (`finish` gives None until then).
    asked: Collection[Unit] = ()

    def impossible(self) -> str | None:
        """Why this machine cannot do it, where that is known without starting anything."""
        return None

    @abstractmethod
    def start(self, unit: Unit, run: Any) -> Any:
        """Hand the work over; returns the backend's handle."""

    def heard(self, unit: Unit, run: Any, item: Any) -> None:  # noqa: B027
        """An item of work that yields them; the last one goes to `finish` as well."""

    def poll(self, unit: Unit, run: Any) -> bool:
        """Called at every turn of the loop while the work goes on; whether anything was heard of it."""
        return False

    def abandoned(self, unit: Unit, run: Any) -> None:  # noqa: B027
        """Called when its work was lost, failed, or was given up: what that may hold yet is freed."""

    @abstractmethod
    def finish(self, unit: Unit, run: Any, value: Any) -> dict[str, Any] | None:
        """Write the unit's files; returns its record, with "files" (relative to OUT) that it is not finished without.

        A record with "unfinished" (a reason) keeps what came out, and the next run tries again. None: it is not
        through, and is started again.

        Raises:
            Skipped: it cannot be had here. QrayError: it failed.
        """


def _named(value: Any) -> Any:
    """What of a value goes into a key."""
    if isinstance(value, Unit):
        return value.key
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} cannot be part of a key")


def unit_key(kind: str, version: int, depends: Mapping[str, Any]) -> str:
    """The hash that names a unit: the same on a laptop and on a cluster."""
    record = {"kind": kind, "code": version, **depends}
    text = json.dumps(record, sort_keys=True, default=_named, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, eq=False)
class Unit:
    """One piece of work. A new object is another unit, though it may have the same key."""

    kind: str
    #: What it is of, such as the variant: no two units of a kind share it.
    name: str
    task: Task
    #: All that its outcome depends on. Units among the values must be finished before it, and their keys are in its.
    depends: Mapping[str, Any]
    #: Units that must be finished before it though its outcome is told by `depends` alone.
    after: tuple[Unit, ...] = ()
    #: Units that must have ended, but may have been skipped or have failed; those that finished are part of the key.
    settled: tuple[Unit, ...] = ()
    #: What the log and the timeline call it.
    title: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    @property
    def label(self) -> str:
        """`title`, or kind and name."""
        return self.title or f"{self.kind} {self.name}"

    @cached_property
    def needs(self) -> tuple[Unit, ...]:
        """Units that must be finished before this one."""
        return (*(value for value in self.depends.values() if isinstance(value, Unit)), *self.after)

    @cached_property
    def key(self) -> str:
        """The key of a unit that has no `settled` ones; of the others, see `key_given`."""
        if self.settled:
            raise ValueError(f"the key of {self} depends on what of its {len(self.settled)} units is finished")
        return unit_key(self.kind, self.task.version, self.depends)

    def key_given(self, finished: Callable[[Unit], bool]) -> str:
        """The key, given which units are finished."""
        if not self.settled:
            return self.key
        keys = sorted(unit.key for unit in self.settled if finished(unit))
        return unit_key(self.kind, self.task.version, {**self.depends, "settled": keys})


class Graph:
    """Units in the order in which they are given slots; every unit comes after those that it needs."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self._units = {(unit.kind, unit.name): unit for unit in units}

    def __iter__(self) -> Iterator[Unit]:
        return iter(self._units.values())

    def of(self, kind: str) -> dict[str, Unit]:
        """Units of a kind, by name."""
        return {unit.name: unit for unit in self if unit.kind == kind}

    def one(self, kind: str) -> Unit | None:
        """The only unit of a kind that a study has once, or None."""
        return next(iter(self.of(kind).values()), None)
