"""What a service sees of an artifact: how long a fresh process takes to its first prediction, and how many clips a
second several processes predict at once."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qray.errors import QrayError
from qray.measure.latency import SAMPLES_BEYOND, percentile, single_process_environment
from qray.point import Point
from qray.reasons import reason_of
from qray.scratch import scratch_folder
from qray.study import Serving

#: Of the calls so many percent must keep to the bound.
WITHIN = 95
#: How often it is looked whether a process that says nothing is there.
LOOK_EVERY_S = 1.0
#: So many calls, of all streams together, carry that percentile.
LEAST_CALLS = math.ceil(100 * SAMPLES_BEYOND / (100 - WITHIN))


@dataclass(frozen=True)
class Streams:
    """So many streams at once, each of which asks for its next prediction when it has the one before."""

    streams: int
    #: Of all streams together.
    clips_s: float
    calls: int
    #: Half of all calls, and 95 % of them, took at most so long; None where the calls are too few to tell.
    p50_ms: float | None
    p95_ms: float | None


@dataclass(frozen=True)
class Served:
    """What was measured of one artifact at one point."""

    #: Seconds from the start of a process to its first prediction, engine and all.
    cold_starts_s: Sequence[float] = ()
    streams: Sequence[Streams] = ()
    #: Why it could not be measured.
    error: str | None = None

    @property
    def cold_start_s(self) -> float | None:
        """The median of those."""
        return float(np.median(self.cold_starts_s)) if self.cold_starts_s else None

    def within(self, bound_ms: float) -> Streams | None:
        """Of the numbers of streams that keep to a bound (`WITHIN`) the one that predicts the most clips a second."""
        kept = [found for found in self.streams if found.p95_ms is not None and found.p95_ms <= bound_ms]
        return max(kept, key=lambda found: found.clips_s, default=None)


def measure_serving(folder: Path, at: Point, settings: Serving, timeout_s: float) -> dict[str, Any]:
    """`Served` of an artifact as a dict. Every stream is a process with the point's threads, on all cores that there
    are; nothing else should run meanwhile.

    Raises:
        QrayError: a process failed, or all of it took longer than `timeout_s`.
    """
    with _workers(folder, at, timeout_s) as workers:
        for _ in range(settings.cold_starts):
            workers.stop()
            workers.start(1)
        cold = list(workers.firsts)
        found = []
        for count in sorted(set(settings.streams)):
            workers.start(count)
            found.append(workers.stream(count, settings.seconds))
    return asdict(Served(cold, found))


class _Workers:
    """Processes that have each loaded an artifact, and wait for a line that says for how long to predict."""

    def __init__(self, request: Path, errors: Path, at: Point) -> None:
        self.firsts: list[float] = []
        #: Set when there is no more time.
        self.late = threading.Event()
        self._command = [sys.executable, "-m", "qray.measure.serving", str(request)]
        self._errors, self._at, self._running = errors, at, list[subprocess.Popen[str]]()

    def start(self, count: int) -> None:
        """Have so many running, and wait until each has predicted; notes how long each took, one beside the other."""
        begun = time.time()
        fresh = [self._spawn() for _ in range(count - len(self._running))]
        self._running += fresh
        self.firsts += [self._answer(worker)["at"] - begun for worker in fresh]

    def stream(self, count: int, seconds: float) -> Streams:
        """Have so many predict for so many seconds."""
        busy = self._running[:count]
        for worker in busy:
            assert worker.stdin is not None
            # Of one that has ended since, its answer is that it has.
            with suppress(BrokenPipeError):
                worker.stdin.write(json.dumps({"seconds": seconds, "calls": -(-LEAST_CALLS // count)}) + "\n")
                worker.stdin.flush()
        each = [self._answer(worker)["ms"] for worker in busy]
        together = np.concatenate(each)
        clips_s = sum(1e3 * len(calls) / sum(calls) for calls in each) * self._at.batch
        return Streams(count, clips_s, len(together), percentile(together, 50), percentile(together, WITHIN))

    def kill(self) -> None:
        """End all; whoever waits for an answer hears of it."""
        for worker in list(self._running):
            worker.kill()

    def stop(self) -> None:
        """End all, and forget them."""
        self.kill()
        for worker in self._running:
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                # What one of them has started may hold the other end: nothing is waited for there.
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
        self._running = []

    def _spawn(self) -> subprocess.Popen[str]:
        with self._errors.open("ab") as errors:
            return subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=single_process_environment(self._at.threads),
            )  # fmt: skip

    def _answer(self, worker: subprocess.Popen[str]) -> dict[str, Any]:
        assert worker.stdout is not None
        # What it has started may hold the pipe open when it has ended itself.
        while not (ready := select.select([worker.stdout], [], [], LOOK_EVERY_S)[0]):
            if worker.poll() is not None or self.late.is_set():
                break
        line = worker.stdout.readline() if ready else ""
        if not line:
            said = reason_of(self._errors.read_text(encoding="utf-8", errors="replace"))
            raise QrayError(f"its process ended: {said or f'exit code {worker.poll()}'}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def _workers(folder: Path, at: Point, timeout_s: float) -> Iterator[_Workers]:
    with scratch_folder("serving") as scratch:
        request, errors = scratch / "request.json", scratch / "stderr"
        request.write_text(json.dumps({"folder": str(folder), "point": asdict(at)}), encoding="utf-8")
        workers = _Workers(request, errors, at)

        def end() -> None:
            workers.late.set()
            workers.kill()

        watch = threading.Timer(timeout_s, end)
        watch.start()
        try:
            yield workers
        except QrayError:
            if workers.late.is_set():
                raise QrayError(f"it took longer than {timeout_s:.0f} s") from None
            raise
        finally:
            watch.cancel()
            workers.stop()


def _serve(request: Mapping[str, Any], say: Any) -> None:
    """Body of a worker: one line when it has predicted once, then one for each line that it is told."""
    from qray.engines.artifact import read_artifact
    from qray.engines.registry import load_artifact

    point, artifact = Point(**request["point"]), read_artifact(Path(request["folder"]))
    predict, spec = load_artifact(artifact, point.threads, point.device, allow_code=True), artifact.clip
    shape = (point.batch, spec.frames, spec.image_size, spec.image_size, 3)
    clips = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    predict(clips)
    say({"at": time.time()})
    for line in sys.stdin:
        wanted, calls = json.loads(line), list[float]()
        until = time.perf_counter() + wanted["seconds"]
        while len(calls) < wanted["calls"] or time.perf_counter() < until:
            started = time.perf_counter_ns()
            predict(clips)
            calls.append((time.perf_counter_ns() - started) / 1e6)
        say({"ms": calls})


if __name__ == "__main__":
    # What engines print is not taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _serve(
        json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")),
        lambda answer: print(json.dumps(answer), file=answers),
    )
