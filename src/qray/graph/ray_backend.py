"""Units as Ray tasks, on the slots and nodes of a cluster."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, wraps
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    RayError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from ray.util import get_placement_group, remove_placement_group

from qray.data.stream import cluster_state
from qray.errors import Lost
from qray.graph.neighbours import BOARD, Neighbours
from qray.graph.placement import Placement, on_node, placement, whereabouts
from qray.graph.session import Slots, cluster_slots
from qray.graph.telemetry import Board, Status, Tally, start_actor
from qray.graph.unit import Unit

LOOK_EVERY_S = 2.0
#: The variable of a worker's environment that says whose work it does.
PROCESSES = "QRAY_PROCESSES"


@dataclass(eq=False)
class _Handle:
    """What was started. ref: an ObjectRef, or the generator of a task that yields."""

    ref: Any
    streaming: bool = False
    last: Any = None


def _located(value: Any) -> Any:
    return value | whereabouts() if isinstance(value, dict) else value


@cache
def _remote(work: Callable[..., Any]) -> Any:
    """Work as a task that says of each record (a dict) where it was made."""

    @wraps(work)
    def done(*arguments: Any) -> Any:
        return _located(work(*arguments))

    @wraps(work)
    def yielded(*arguments: Any) -> Iterator[Any]:
        for value in work(*arguments):
            yield _located(value)

    if inspect.isgeneratorfunction(work):
        return ray.remote(num_returns="streaming", max_retries=0)(yielded)
    return ray.remote(max_retries=0)(done)


#: What Ray says of work whose process, node or inputs went, whatever it was doing; and what torch says of a GPU that
#: failed, by name, since the driver has no torch.
GONE = (
    ActorDiedError, ActorUnavailableError, LocalRayletDiedError, NodeDiedError, ObjectLostError, TaskUnschedulableError,
    WorkerCrashedError, Lost,
)  # fmt: skip
GPU_FAILED = {"AcceleratorError"}
#: Ray's where a node has run out of it, and torch's where a GPU has.
NO_MEMORY = {"OutOfMemoryError"}


def lost(error: BaseException) -> str:
    """What `Backend.lost` asks, by what an error was raised from."""
    found = list[BaseException]()
    following: BaseException | None = error
    while following is not None and following not in found:
        found.append(following)
        following = getattr(following, "cause", None) or following.__cause__
    names = {kind.__name__ for each in found for kind in type(each).__mro__}
    if names & NO_MEMORY:
        return "memory"
    return "machine" if any(isinstance(each, GONE) for each in found) or names & GPU_FAILED else ""


class RayBackend:
    """The Ray that this process is connected to."""

    failures: tuple[type[Exception], ...] = (RayError,)

    def __init__(self, nodes: Placement | None = None) -> None:
        self.nodes = nodes if nodes is not None else placement()
        self._slot_cpus = cluster_slots().slot_cpus
        self.board: Any = start_actor(Board, BOARD)
        self._neighbours = Neighbours(self.board)
        self._tally = Tally()
        self._status: dict[str, Status] = {}
        self._asked: Any = None
        self._looked = self._wished = time.monotonic()

    @property
    def slots(self) -> Slots:
        """The cluster's slots as it is now, with the GPUs that it may yet start."""
        return replace(cluster_slots(), gpus=self.nodes.gpus(), settled=self._slot_cpus)

    @property
    def holders(self) -> int:
        """Slots that may be held at once in the cluster as it is now."""
        return self.slots.holders

    def need(self, held: int, waiting: int) -> None:
        """Tell other runs how many slots this one holds, and whether it waits for more; and have the cluster grow for
        those, where it can."""
        self._neighbours.say(held, waiting > 0)
        self.nodes.look()
        if self.nodes.grows and time.monotonic() - self._wished >= LOOK_EVERY_S:
            self._wished = time.monotonic()
            self.nodes.want(waiting * self._slot_cpus)

    def leave_room(self, held: int, more: int) -> bool:
        """Whether other runs of the cluster leave room for so many slots more."""
        return self._neighbours.leave_room(held, more, self.holders)

    @property
    def gpus(self) -> int:
        """GPUs that the cluster has, or may have."""
        return int(self.nodes.gpus())

    def submit(self, unit: Unit, work: Callable[..., Any], *arguments: Any, needs: Collection[str] = ()) -> _Handle:
        """Start work of a unit: a function, or one that yields.

        It goes to a node whose CPU has `needs`, and with a GPU if it cannot do without. References among the arguments
        arrive as what they refer to.

        Raises:
            Unavailable: no node has. NotYet: one that is yet to come may have.
        """
        resources, name = unit.task.resources, str(unit)
        options: dict[str, Any]
        if resources.here:
            node = ray.get_runtime_context().get_node_id()
            options = {"num_cpus": 0, "scheduling_strategy": on_node(node)}
        elif resources.exclusive:
            options = self.nodes.alone(needs, resources.on_gpu)
        else:
            options = self.slots.options(resources.gpu) | self.nodes.options(needs, resources.on_gpu)
        if resources.processes:
            # Ray gives a worker to tasks of one environment alone.
            options["runtime_env"] = {"env_vars": {PROCESSES: resources.processes}}
        ref = _remote(work).options(name=name, **options).remote(*arguments)
        return _Handle(ref, streaming=inspect.isgeneratorfunction(work))

    def lost(self, error: BaseException) -> str:
        """What `lost` says."""
        return lost(error)

    def done(self, value: Any = None) -> _Handle:
        """The handle of work that the driver has done itself."""
        return _Handle(ray.put(value))

    def share(self, value: Any) -> Any:
        """A reference to a value, which lies beside the driver for all whose argument it is."""
        return ray.put(value)

    def wait(self, handles: Collection[_Handle], timeout_s: float) -> list[_Handle]:
        """Handles that have something to take."""
        ready, _ = ray.wait([handle.ref for handle in handles], num_returns=1, timeout=timeout_s)
        return [handle for handle in handles if any(handle.ref is ref or handle.ref == ref for ref in ready)]

    def take(self, handle: _Handle) -> tuple[bool, Any]:
        """(whether it has ended, its value); raises what the work raised."""
        if not handle.streaming:
            return True, ray.get(handle.ref)
        try:
            handle.last = ray.get(next(handle.ref))
        except StopIteration:
            return True, handle.last
        return False, handle.last

    def cancel(self, handle: _Handle, force: bool) -> None:
        """End the work; what yields ends with the driver."""
        if not handle.streaming:
            ray.cancel(handle.ref, force=force)

    def free(self, groups: Iterable[str]) -> None:
        """Remove those of these placement groups, by their names, that there are, and end what runs in them."""
        for name in groups:
            # There is none, or Ray is ending.
            with suppress(ValueError, RayError):
                remove_placement_group(get_placement_group(name))

    def progress(self) -> Mapping[str, object]:
        """The last word of each task, read from the board every few seconds."""
        if self.board is None or time.monotonic() - self._looked < LOOK_EVERY_S:
            return self._status
        try:
            self._asked = self._asked or self.board.read.remote()
            if ray.wait([self._asked], timeout=0)[0]:
                self._status, self._asked = ray.get(self._asked), None
                self._looked = time.monotonic()
        except RayError:
            # Progress is not worth a run.
            self.board, self._status = None, {}
        return self._status

    def tell(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Export them for the dashboard (`ray_qray_units`)."""
        self._tally.set(counts)

    def state(self) -> str:
        """CPUs, memory and what waits, of the cluster."""
        return cluster_state()

    def whereabouts(self) -> dict[str, Any]:
        """The driver's node, host and versions."""
        return whereabouts()
