"""What a runner asks of the place where work is done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from qray.graph.unit import Unit


class Backend(Protocol):
    """Where work is done: `RayBackend`, or threads in tests of the loop."""

    #: What it raises where work or its machine failed.
    failures: tuple[type[Exception], ...]

    @property
    def holders(self) -> int:
        """Slots that may be held at once, as things are now."""

    @property
    def gpus(self) -> int:
        """GPUs that may be held at once."""

    def need(self, held: int, waiting: int) -> None:
        """Hear how many slots are held, and how many units wait for one."""

    def leave_room(self, held: int, more: int) -> bool:
        """Whether so many slots more may be held beside what other runs hold."""

    def submit(self, unit: Unit, work: Callable[..., Any], *arguments: Any, needs: Collection[str] = ()) -> Any:
        """Start work of a unit (a function, or one that yields) where a CPU has `needs`; returns its handle. Raises
        NotYet where a machine that is yet to come may have."""

    def done(self, value: Any = None) -> Any:
        """The handle of work that the driver has done itself."""

    def lost(self, error: Exception) -> str:
        """Why another attempt may do better: "machine" where a process or its node went, "memory" where it took too
        much beside others; "" where the work itself failed."""

    def wait(self, handles: Collection[Any], timeout_s: float) -> Collection[Any]:
        """Handles that have something to take; none when the time is over."""

    def take(self, handle: Any) -> tuple[bool, Any]:
        """(whether it has ended, its value) of a handle that `wait` gave: each item of work that yields, then the last
        once more. Raises what the work raised, or one of `failures`."""

    def free(self, groups: Iterable[str]) -> None:
        """Remove what work has reserved under these names, where it is still there."""

    def cancel(self, handle: Any, force: bool) -> None:
        """End the work."""

    def progress(self) -> Mapping[str, object]:
        """How far each piece of work says it is, by its name; never waits."""

    def tell(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Show whoever watches how many units there are of each kind and state."""

    def state(self) -> str:
        """How its machines are, for a diagnosis."""

    def whereabouts(self) -> dict[str, Any]:
        """The node and host of the driver, and the versions there."""
