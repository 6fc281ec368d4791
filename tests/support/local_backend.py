"""Units in threads of this process, without Ray: to run small graphs, and to try scheduling and resuming."""

from __future__ import annotations

import inspect
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qray.errors import Lost
from qray.graph.unit import Unit
from qray.measure.host import provenance_here


class LocalFailure(Exception):
    """Work raised; `cause` is what."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(eq=False)
class _Handle:
    items: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    cancelled: bool = False
    last: Any = None


class LocalBackend:
    """So many threads at once as there are `holders`. Work that is cancelled is not heard any more."""

    failures: tuple[type[Exception], ...] = (LocalFailure,)

    def __init__(self, holders: int = 2, gpus: int = 0) -> None:
        self.holders, self.gpus = holders, gpus
        self.told: list[dict[tuple[str, str], int]] = []
        self._anything = threading.Condition()

    def need(self, held: int, waiting: int) -> None:
        """Nothing: threads do not become more."""

    def leave_room(self, held: int, more: int) -> bool:
        """Nobody else is there."""
        return True

    def submit(self, unit: Unit, work: Callable[..., Any], *arguments: Any, needs: Collection[str] = ()) -> _Handle:
        """Start work of a unit: a function, or one that yields."""
        handle = _Handle()

        def go() -> None:
            try:
                last = None
                if inspect.isgeneratorfunction(work):
                    for last in work(*arguments):
                        self._say(handle, False, last)
                else:
                    last = work(*arguments)
                self._say(handle, True, last)
            except Exception as error:
                self._say(handle, True, LocalFailure(error))

        threading.Thread(target=go, name=str(unit), daemon=True).start()
        return handle

    def _say(self, handle: _Handle, over: bool, item: Any) -> None:
        with self._anything:
            handle.items.put((over, item))
            self._anything.notify()

    def done(self, value: Any = None) -> _Handle:
        """The handle of work that the caller has done itself."""
        handle = _Handle()
        self._say(handle, True, value)
        return handle

    def share(self, value: Any) -> Any:
        """The value: threads share all of them."""
        return value

    def lost(self, error: Exception) -> str:
        """By whether work raised `Lost` or MemoryError."""
        cause = getattr(error, "cause", None)
        return "machine" if isinstance(cause, Lost) else "memory" if isinstance(cause, MemoryError) else ""

    def wait(self, handles: Collection[_Handle], timeout_s: float) -> list[_Handle]:
        """Handles that have something to take."""
        end = time.monotonic() + timeout_s
        with self._anything:
            while not (ready := [handle for handle in handles if not handle.items.empty()]):
                if not self._anything.wait(max(0.0, end - time.monotonic())):
                    break
        return ready

    def take(self, handle: _Handle) -> tuple[bool, Any]:
        """(whether it has ended, its value)."""
        over, item = handle.items.get_nowait()
        if isinstance(item, LocalFailure):
            raise item
        return over, item

    def free(self, groups: Iterable[str]) -> None:
        """Threads reserve nothing."""

    def cancel(self, handle: _Handle, force: bool) -> None:
        """Nothing: a thread cannot be ended from outside, and what it still says is not asked for."""

    def progress(self) -> Mapping[str, object]:
        """Nothing: threads have no board."""
        return {}

    def tell(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Kept, for tests to read."""
        self.told.append(dict(counts))

    def state(self) -> str:
        """How many threads there may be."""
        return f"{self.holders} threads"

    def whereabouts(self) -> dict[str, Any]:
        """This host and its versions."""
        return provenance_here()
