"""How far each task is: metrics for the Ray dashboard, and a board from which the driver shows progress."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError
from ray.util.metrics import Counter, Gauge, Histogram

from qray.graph.placement import on_node

POST_EVERY_S = 2.0
#: What every metric bears besides its own labels: Ray's number of the run, as its dashboard lists it.
RUN = "JobId"


@dataclass(frozen=True)
class Status:
    """What a task says of itself: clips done of how many, clips per second, and its loss if it trains."""

    done: int
    total: int
    per_s: float
    loss: float | None = None

    def __str__(self) -> str:
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        return f"{self.done}/{self.total} clips, {self.per_s:.0f}/s{loss}"


class Board:
    """An actor that holds the last word of each running task, and for other runs of the cluster how many slots this one
    holds, and whether it waits for more. It takes no CPU."""

    def __init__(self) -> None:
        self._last: dict[str, Status] = {}
        self._held = 0, False

    def __repr__(self) -> str:
        return "board"

    def post(self, name: str, status: Status | None) -> None:
        """Say how far `name` is; None when it has ended."""
        if status is None:
            self._last.pop(name, None)
        else:
            self._last[name] = status

    def hold(self, slots: int, waits: bool) -> None:
        """Say how many slots the run holds, and whether it waits for more."""
        self._held = slots, waits

    def held(self) -> tuple[int, bool]:
        """The same."""
        return self._held

    def read(self) -> dict[str, Status]:
        """The last word of each."""
        return self._last


def start_actor(kind: type, label: str) -> Any:
    """An actor that holds no CPU, beside who starts it, with whom it ends; the name that it bears in the dashboard is
    numbered where an actor of this session bears it still, as those that die do."""
    name, number = label, 1
    # Anywhere else it might disturb what is measured.
    here = on_node(ray.get_runtime_context().get_node_id())
    while True:
        try:
            return ray.remote(num_cpus=0)(kind).options(name=name, scheduling_strategy=here).remote()
        except ActorAlreadyExistsError:
            number += 1
            name = f"{label} ({number})"


def _of_this_run(*metrics: Counter | Gauge | Histogram, **labels: str) -> None:
    """Give metrics the labels that all they are told from here on has in common."""
    for metric in metrics:
        metric.set_default_tags({RUN: ray.get_runtime_context().get_job_id(), **labels})


class Telemetry:
    """Reports for one variant or trial on `total` clips. kind: "train", "validate" or "evaluate". Ray exports what is
    set here to its dashboard (Prometheus names `ray_qray_*`); a few times a minute the board hears of it too."""

    def __init__(self, kind: str, variant: str, board: Any = None, total: int = 0, done: int = 0) -> None:
        self.name, self.board, self.total = f"{kind} {variant}", board, total
        labels = ("kind", "variant", RUN)
        self._count = Counter("qray_clips", "Clips that a model has processed", labels)
        self._rate = Gauge("qray_clips_per_second", "Clips processed per second, now", labels)
        _of_this_run(self._count, self._rate, kind=kind, variant=variant)
        self._loss = Gauge("qray_training_loss", "Training loss, standardised units", ("variant", RUN))
        self._mae = Gauge("qray_mae", "Mean absolute error, target units", ("variant", "split", RUN))
        _of_this_run(self._loss, self._mae, variant=variant)
        self._last = self._posted = time.monotonic()
        self._done, self._done_before = done, done

    def clips(self, n: int, loss: float | None = None) -> None:
        """Count n > 0 more clips."""
        self._done += n
        self._count.inc(n)
        now = time.monotonic()
        self._rate.set(n / max(now - self._last, 1e-6))
        self._last = now
        if self.board is not None and now - self._posted >= POST_EVERY_S:
            rate = (self._done - self._done_before) / (now - self._posted)
            self.board.post.remote(self.name, Status(self._done, self.total, rate, loss))
            self._posted, self._done_before = now, self._done

    def step(self, loss: float, clips: int) -> None:
        """Report a training step over so many clips."""
        self._loss.set(loss)
        self.clips(clips, loss)

    def mae(self, split: str, value: float) -> None:
        """Report the mean absolute error on a split."""
        if math.isfinite(value):
            self._mae.set(value, tags={"split": split})

    def end(self) -> None:
        """Take the name off the board; this process may live on, and processes no more clips of this."""
        self._rate.set(0.0)
        if self.board is not None:
            self.board.post.remote(self.name, None)


class Feed:
    """How well a stream, by its name, feeds the model that consumes it."""

    def __init__(self, stream: str) -> None:
        labels = ("stream", "device", RUN)
        self._ahead = Gauge("qray_batches_ahead", "Decoded batches that wait for the model", labels)
        self._idle = Gauge("qray_idle_share", "Share of time in which model and device wait for clips", labels)
        self._wait = Histogram("qray_batch_wait_seconds", "Seconds that a model waited for a batch",
                               boundaries=[0.001, 0.01, 0.1, 1.0, 10.0, 100.0], tag_keys=labels)  # fmt: skip
        device = "gpu" if ray.get_gpu_ids() else "cpu"
        _of_this_run(self._ahead, self._idle, self._wait, stream=stream, device=device)
        self._since, self._waited = time.monotonic(), 0.0

    def delivered(self, waited_s: float, ahead: int) -> None:
        """Report a batch, which was waited for, and how many more there are."""
        self._wait.observe(waited_s)
        self._ahead.set(ahead)
        self._waited += waited_s
        elapsed = time.monotonic() - self._since
        self._idle.set(min(1.0, self._waited / max(elapsed, 1e-6)))
        if elapsed >= POST_EVERY_S:
            self._since, self._waited = time.monotonic(), 0.0

    def end(self) -> None:
        """Nobody waits any more, though this process may live on, and Ray exports what was last said."""
        self._ahead.set(0)
        self._idle.set(0.0)


class Tally:
    """How many units of a run there are, by kind and state."""

    def __init__(self) -> None:
        self._units = Gauge("qray_units", "Units of a run", ("kind", "state", RUN))
        _of_this_run(self._units)
        self._known: set[tuple[str, str]] = set()

    def set(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Report the number of each (kind, state); of one that was there before and is no more, 0."""
        self._known |= counts.keys()
        for kind, state in self._known:
            self._units.set(counts.get((kind, state), 0), tags={"kind": kind, "state": state})
