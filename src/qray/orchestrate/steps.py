"""Run units of work on Ray as soon as what they need is there: one loop, slots, time limits, and lines that tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from rich.console import Console

from qray.data.stream import cluster_state
from qray.errors import QrayError
from qray.judge.index import Result
from qray.orchestrate.placement import whereabouts
from qray.orchestrate.session import cluster_slots
from qray.orchestrate.store import Store
from qray.orchestrate.telemetry import Status
from qray.reasons import reason_of

WAIT_S = 0.5
LOOK_EVERY_S = 2.0
#: Where there is no terminal, a line at least this often.
SPEAK_EVERY_S = 20.0


class Skipped(Exception):
    """A unit that cannot be had on this machine; its message is the reason."""


@dataclass
class Step:
    """One unit of work.

    start: launches it, returns what ray.wait takes (an ObjectRef, or the generator of a streaming task). finish: turns
    the result into the unit's record, writing its files first; a record with "unfinished" (a reason) keeps what came
    out, and the unit is tried again by the next run. on_item: hears of each item of a streaming task; the
    last one goes to `finish`. poll: called at every turn of the loop while the step runs. kind None: not recorded.
    """

    kind: str | None
    key: str
    label: str
    start: Callable[[], Any]
    finish: Callable[[Any], dict[str, Any]]
    after: Sequence[str] = ()
    slots: int = 1
    on_item: Callable[[Any], None] | None = None
    poll: Callable[[], None] | None = None
    silence_s: float = 3600.0


@dataclass
class _Running:
    step: Step
    handle: Any
    streaming: bool
    started: float
    heard: float
    last: Any = None


class Runner:
    """Runs steps; keeps the results by key. One step's failure fails what needs it and nothing else.

    on_end: called after each end of a unit.
    """

    def __init__(
        self, store: Store, console: Console, board: Any = None, results: dict[str, Result] | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.store, self.console, self.board, self.on_end = store, console, board, on_end
        self.results = results if results is not None else {}
        self.log: list[str] = []
        self._steps: dict[str, Step] = {}
        self._running: dict[str, _Running] = {}
        self._began = self._spoken = self._looked = time.monotonic()
        self._status: dict[str, Status] = {}
        self._asked: Any = None

    def say(self, text: str, style: str | None = None) -> None:
        """A line with the seconds since the start."""
        line = f"[{time.monotonic() - self._began:6.1f} s] {text}"
        self._spoken = time.monotonic()
        self.log.append(line)
        self.console.print(line, style=style, markup=False, highlight=False)

    def add(self, step: Step) -> None:
        """Add a step, unless its unit is finished already: then its record is taken from the store."""
        record = self.store.get(step.kind, step.key) if step.kind else None
        if record is not None:
            self.results[step.key] = Result("ok", record)
        elif step.key not in self.results:
            self._steps[step.key] = step

    def record(self, key: str) -> dict[str, Any]:
        """The record of a finished step."""
        return self.results[key].record

    def run(self) -> None:
        """Run every added step. Ctrl-C leaves finished units on disk and ends what runs."""
        with self.console.status("starting") as status:
            try:
                while self._steps or self._running:
                    self._fail_orphans()
                    self._start_ready()
                    status.update(self._progress())
                    self._collect()
            except BaseException:
                for running in self._running.values():
                    if not running.streaming:
                        ray.cancel(running.handle, force=False)
                raise

    def _progress(self) -> str:
        """What runs, and how far those are that tell; said as a line too where there is no terminal to show it."""
        now = time.monotonic()
        if self.board is not None and now - self._looked >= LOOK_EVERY_S:
            self._look()
        running = ", ".join(running.step.label for running in self._running.values())
        told = "; ".join(f"{name} {status}" for name, status in sorted(self._status.items()))
        line = f"running: {running}" + (f" ({told})" if told else "")
        if not self.console.is_terminal and now - self._spoken >= SPEAK_EVERY_S:
            self.say(line)
        return line

    def _look(self) -> None:
        """Read the board, without waiting for it."""
        try:
            self._asked = self._asked or self.board.read.remote()
            if ray.wait([self._asked], timeout=0)[0]:
                self._status, self._asked = ray.get(self._asked), None
                self._looked = time.monotonic()
        except RayError:
            # Progress is not worth a run.
            self.board, self._status = None, {}

    def _fail_orphans(self) -> None:
        for key, step in list(self._steps.items()):
            broken = [k for k in step.after if k in self.results and self.results[k].status != "ok"]
            unknown = [
                k for k in step.after if k not in self.results and k not in self._steps and k not in self._running
            ]
            if broken or unknown:
                reason = self.results[broken[0]].reason if broken else "what it needs was not planned"
                status = self.results[broken[0]].status if broken else "failed"
                self.results[key] = Result(status, reason=reason)
                self.on_end()
                del self._steps[key]

    def _start_ready(self) -> None:
        free = cluster_slots().holders - sum(running.step.slots for running in self._running.values())
        for key, step in list(self._steps.items()):
            if any(k not in self.results for k in step.after):
                continue
            if step.slots > free and self._running:
                continue
            del self._steps[key]
            try:
                handle = step.start()
            except (QrayError, RayError) as error:
                self._end(step, time.time(), Result("failed", reason=str(error)))
                continue
            streaming = not isinstance(handle, ray.ObjectRef)
            now = time.time()
            self._running[key] = _Running(step, handle, streaming, now, now)
            free -= step.slots
            self.say(f"start {step.label}")

    def _collect(self) -> None:
        if not self._running:
            return
        handles = [running.handle for running in self._running.values()]
        ready, _ = ray.wait(handles, num_returns=1, timeout=WAIT_S)
        for key, running in list(self._running.items()):
            if running.step.poll:
                try:
                    running.step.poll()
                except RayError as error:
                    del self._running[key]
                    self._end(running.step, running.started, Result("failed", reason=plain_reason(error)))
                    continue
            if any(running.handle is handle or running.handle == handle for handle in ready):
                running.heard = time.time()
                self._advance(key, running)
            elif time.time() - running.heard > running.step.silence_s:
                del self._running[key]
                if not running.streaming:
                    ray.cancel(running.handle, force=True)
                self._end(running.step, running.started, Result("failed", reason=self._silence(running)))

    def _silence(self, running: _Running) -> str:
        return f"nothing was heard for {running.step.silence_s:.0f} s. {cluster_state()}"

    def _advance(self, key: str, running: _Running) -> None:
        step = running.step
        try:
            if running.streaming:
                try:
                    reference = next(running.handle)
                except StopIteration:
                    del self._running[key]
                    self._finish(running, running.last)
                    return
                running.last = ray.get(reference)
                if step.on_item:
                    step.on_item(running.last)
                return
            del self._running[key]
            self._finish(running, ray.get(running.handle))
        except (QrayError, RayError, Skipped) as error:
            self._running.pop(key, None)
            status = "skipped" if isinstance(error, Skipped) else "failed"
            self._end(step, running.started, Result(status, reason=plain_reason(error)))

    def _finish(self, running: _Running, value: Any) -> None:
        step = running.step
        record = step.finish(value)
        ended = {"label": step.label, "started": running.started, "seconds": time.time() - running.started}
        # What a task does not say of its whereabouts was done by the driver.
        record = whereabouts() | record | ended
        if step.kind:
            self.store.put(step.kind, step.key, record)
        unfinished = record.get("unfinished")
        self._end(step, running.started, Result("failed" if unfinished else "ok", record, unfinished))

    def _end(self, step: Step, started: float, result: Result) -> None:
        self.results[step.key] = result
        self.on_end()
        seconds = time.time() - started
        if result.status == "ok":
            self.say(f"done  {step.label} in {seconds:.1f} s")
        else:
            style = "red" if result.status == "failed" else "yellow"
            self.say(f"{result.status} {step.label}: {result.reason}", style)


def plain_reason(error: BaseException) -> str:
    """A Ray error's cause without Ray's traceback: its first line, and those that say why."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    text, kind = reason_of(str(cause)), type(cause).__name__
    if isinstance(cause, QrayError | Skipped):
        return text or kind
    return text if text.startswith(f"{kind}:") else f"{kind}: {text}" if text else kind
