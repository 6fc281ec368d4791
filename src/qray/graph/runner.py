"""Run what is missing of a graph as soon as what it needs is there: one loop, slots, time limits, lines that tell."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from qray.errors import NotYet, QrayError, Unavailable
from qray.graph.backend import Backend
from qray.graph.queue import Queue, Waiting
from qray.graph.store import Store
from qray.graph.unit import Result, Skipped, Unit
from qray.reasons import reason_of

WAIT_S = 0.5
#: Where there is no terminal, a line at least this often.
SPEAK_EVERY_S = 20.0
TELL_EVERY_S = 2.0
#: How long a unit waits for a machine that can do it, where machines may yet come: some minutes to start one, and more
#: until another run has left it.
NOT_YET_S = 1200.0
RETRY_S = 5.0
#: Times that a unit is started again whose process or node went, if nothing was heard of it meanwhile: it may be the
#: unit that ends them.
RESTARTS = 2
UNPLANNED = Result("failed", reason="what it needs was not planned")


@dataclass
class _Running:
    unit: Unit
    key: str
    handle: Any
    slots: int
    started: float
    heard: float


@dataclass
class _Waits:
    """Since when a unit waits for a machine that is yet to come, and when it is tried again."""

    since: float
    again: float = 0.0


class Runner:
    """Runs units; keeps how each ended by key. One unit's failure fails what needs it and nothing else.

    results: ends of earlier rounds, to which those of this one are added. on_end: called after each end of a unit;
    on_turn: at every turn of the loop.
    """

    def __init__(
        self, store: Store, backend: Backend, console: Console, results: dict[str, Result] | None = None,
        on_end: Callable[[], None] = lambda: None, on_turn: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.store, self.backend, self.console = store, backend, console
        self.on_end, self._on_turn = on_end, on_turn
        self.results = results if results is not None else {}
        #: What tasks are given besides their unit.
        self.context: Any = None
        self.log: list[str] = []
        self._queue = Queue(self._settle)
        self._running: list[_Running] = []
        #: When each was started first.
        self._begun: dict[Unit, float] = {}
        #: How often each was started again, and those that nothing may run beside then.
        self._restarts: Counter[Unit] = Counter()
        self._alone: set[Unit] = set()
        self._waits: dict[Unit, _Waits] = {}
        self._began = self._spoken = time.monotonic()
        self._ended: Counter[tuple[str, str]] = Counter()
        self._later: Collection[Unit] = ()
        self._told = -TELL_EVERY_S
        self._failures: tuple[type[Exception], ...] = (QrayError, Skipped, *backend.failures)

    def say(self, text: str, style: str | None = None) -> None:
        """A line with the seconds since the start."""
        line = f"[{time.monotonic() - self._began:6.1f} s] {text}"
        self._spoken = time.monotonic()
        self.log.append(line)
        self.console.print(line, style=style, markup=False, highlight=False)

    def add(self, unit: Unit) -> None:
        """Run a unit too, after those that are there."""
        self._queue.add(unit)

    def busy(self, kind: str) -> bool:
        """Whether a unit of a kind runs or waits."""
        return self._queue.busy(kind)

    def _settle(self, unit: Unit) -> bool:
        """End a unit that waits for nothing and need not be run: finished already, or without what it needs."""
        if self.ended(unit) is None:
            ends = [self.ended(other) or UNPLANNED for other in unit.needs]
            broken = next((end for end in ends if end.status != "ok"), None)
            if broken is None:
                return False
            self.results[self.store.key(unit)] = Result(broken.status, reason=broken.reason)
            self._ended[unit.kind, broken.status] += 1
        self._queue.leave(unit)
        self.on_end()
        return True

    def run(self, units: Collection[Unit], later: Collection[Unit] = ()) -> None:
        """Run units, and what is added meanwhile. Ctrl-C leaves finished units on disk and ends what runs.

        later: those of another call that is to follow, which wait until then.
        """
        self._later = later
        for unit in units:
            self.add(unit)
        with self.console.status("starting") as status:
            try:
                while self._queue:
                    self.store.check()
                    self._queue.look()
                    self._start_ready()
                    self._tell()
                    status.update(self._progress())
                    self._collect()
                    self._on_turn()
            except BaseException:
                for running in self._running:
                    self.backend.cancel(running.handle, force=False)
                raise
        self._told = -TELL_EVERY_S
        self._tell()

    def _tell(self) -> None:
        """Every few seconds, how many units wait for others, could be run, run, and have ended in which way."""
        if time.monotonic() - self._told < TELL_EVERY_S:
            return
        self._told, counts = time.monotonic(), Counter(self._ended)
        counts.update(self._queue.states())
        counts.update((unit.kind, "waiting") for unit in self._later)
        for running in self._running:
            counts[running.unit.kind, "running"] += 1
        self.backend.tell(counts)

    def _progress(self) -> str:
        """What runs, and how far those are that tell; said as a line too where there is no terminal to show it."""
        told = "; ".join(f"{name} {status}" for name, status in sorted(self.backend.progress().items()))
        line = f"running: {', '.join(running.unit.label for running in self._running)}" + (f" ({told})" if told else "")
        if not self.console.is_terminal and time.monotonic() - self._spoken >= SPEAK_EVERY_S:
            self.say(line)
        return line

    def ended(self, unit: Unit) -> Result | None:
        """How a unit ended, now or in an earlier run; None while it has not."""
        key = self.store.key(unit)
        if key not in self.results and (record := self.store.record(unit)) is not None:
            self.results[key] = Result("ok", record)
        return self.results.get(key)

    def _slots(self, unit: Unit) -> int:
        holders, resources = self.backend.holders, unit.task.resources
        if resources.exclusive or unit in self._alone:
            return holders + 1
        if resources.whole or resources.slots <= 1:
            return resources.slots
        return max(1, min(resources.slots, holders - 1))

    def _gpus(self, unit: Unit) -> int:
        """Those that a unit holds; where there are none, it does without, or is refused when it starts."""
        resources, there = unit.task.resources, self.backend.gpus
        if not there:
            return 0
        if resources.inner_gpus:
            return min(self._slots(unit), there)
        return resources.slots if resources.whole and resources.gpu else int(resources.gpu)

    def _start_ready(self) -> None:
        free = self.backend.holders - sum(running.slots for running in self._running)
        free_gpus = self.backend.gpus - sum(self._gpus(running.unit) for running in self._running)
        keys = {running.key for running in self._running}
        held, ready, room = list[Waiting](), self._queue.ready, True
        while ready and (free > 0 or not self._running or not ready[0].unit.task.resources.slots):
            waiting = ready.pop(0)
            unit = waiting.unit
            # What it has the key of may have ended meanwhile.
            if self._settle(unit):
                continue
            slots, gpus, key = self._slots(unit), self._gpus(unit), self.store.key(unit)
            full = slots > free or gpus > free_gpus
            if (full and self._running) or key in keys or self._waits_for_machine(unit):
                held.append(waiting)
                continue
            # What is alone on a node waits until that is free, and holds no slot before.
            if 0 < slots <= self.backend.holders:
                # Others are asked once a turn: their answer is for all.
                room = room and self.backend.leave_room(self._held(), slots)
                if not room:
                    held.append(waiting)
                    continue
            now = self._begun.setdefault(unit, time.time())
            try:
                handle = unit.task.start(unit, self.context)
            except NotYet as error:
                if self._put_off(unit, error):
                    held.append(waiting)
                else:
                    self._end(unit, key, now, Result("failed", reason=f"{error}, nor came one in {NOT_YET_S:.0f} s"))
                continue
            except self._failures as error:
                self._end(unit, key, now, _without(error))
                continue
            self._waits.pop(unit, None)
            self._running.append(_Running(unit, key, handle, slots, now, time.time()))
            free, free_gpus = free - slots, free_gpus - gpus
            keys.add(key)
            self.say(f"start {unit.label}")
        for waiting in held:
            self._queue.put(waiting)
        self.backend.need(self._held(), len(ready))

    def _held(self) -> int:
        """Slots that this run holds, as other runs count them."""
        return sum(running.slots for running in self._running if not running.unit.task.resources.exclusive)

    def _waits_for_machine(self, unit: Unit) -> bool:
        """Whether a unit that was put off is not to be tried again yet."""
        return unit in self._waits and time.time() < self._waits[unit].again

    def _put_off(self, unit: Unit, error: NotYet) -> bool:
        """Try a unit again later that waits for a machine; False where it has waited for long enough."""
        now = time.time()
        if unit not in self._waits:
            self._waits[unit] = _Waits(now)
            self.say(f"{unit.label} waits: {error}, but one may come in the next {NOT_YET_S:.0f} s")
        self._waits[unit].again = now + RETRY_S
        return now - self._waits[unit].since < NOT_YET_S

    def _collect(self) -> None:
        if not self._running:
            if self._queue.ready:
                # Each is kept back by what the loop does not hear of.
                time.sleep(WAIT_S)
            return
        ready = self.backend.wait([running.handle for running in self._running], WAIT_S)
        for running in list(self._running):
            unit = running.unit
            try:
                if unit.task.poll(unit, self.context):
                    running.heard = time.time()
                if running.handle in ready:
                    running.heard = time.time()
                    self._advance(running)
                elif time.time() - running.heard > unit.task.silence_s:
                    silence = f"nothing was heard for {unit.task.silence_s:.0f} s. {self.backend.state()}"
                    raise QrayError(silence)
            except self._failures as error:
                self._running.remove(running)
                if running.handle not in ready:
                    self.backend.cancel(running.handle, force=True)
                unit.task.abandoned(unit, self.context)
                if not self._start_again(unit, error):
                    self._end(unit, running.key, running.started, _without(error))

    def _start_again(self, unit: Unit, error: Exception) -> bool:
        """Whether a unit was put into the queue again, because what failed is not the work."""
        lost = self.backend.lost(error)
        if not lost or self._restarts[unit] >= RESTARTS:
            return False
        self._restarts[unit] += 1
        if lost == "memory":
            self._alone.add(unit)
        how = "alone" if unit in self._alone else "again"
        self.say(f"lost  {unit.label}, which starts {how}: {plain_reason(error)}", "yellow")
        self._queue.add(unit, first=True)
        self._queue.leave(unit)
        return True

    def _advance(self, running: _Running) -> None:
        unit = running.unit
        over, value = self.backend.take(running.handle)
        if not over:
            self._restarts[unit] = 0
            return unit.task.heard(unit, self.context, value)
        record = unit.task.finish(unit, self.context, value)
        self._running.remove(running)
        if record is None:
            self._queue.add(unit, first=True)
            return self._queue.leave(unit)
        ended = {"label": unit.label, "started": running.started, "seconds": time.time() - running.started}
        # What a task does not say of its whereabouts was done by the driver.
        record = self.backend.whereabouts() | record | ended
        self.store.put(unit.kind, running.key, record)
        unfinished = record.get("unfinished")
        return self._end(
            unit, running.key, running.started, Result("failed" if unfinished else "ok", record, unfinished)
        )

    def _end(self, unit: Unit, key: str, started: float, result: Result) -> None:
        self.results[key] = result
        self._ended[unit.kind, result.status] += 1
        self._queue.leave(unit)
        seconds = time.time() - started
        self.on_end()
        if result.status == "ok":
            self.say(f"done  {unit.label} in {seconds:.1f} s")
        else:
            style = "red" if result.status == "failed" else "yellow"
            self.say(f"{result.status} {unit.label}: {result.reason}", style)


def _without(error: Exception) -> Result:
    return Result("skipped" if isinstance(error, Skipped | Unavailable) else "failed", reason=plain_reason(error))


def plain_reason(error: BaseException) -> str:
    """An error's cause without the traceback that Ray adds: its first line, and those that say why."""
    cause = getattr(error, "cause", None) or error
    text, kind = reason_of(str(cause)), type(cause).__name__
    if isinstance(cause, QrayError | Skipped):
        return text or kind
    return text if text.startswith(f"{kind}:") else f"{kind}: {text}" if text else kind
