"""Latency per call: every variant interleaved in blocks, in one process of its own, alone on the node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from qray.errors import Lost, QrayError
from qray.measure.energy import meter_of
from qray.measure.host import cpu_flags, gpu_name, host_name, load_average, usable_cores, usable_cpus
from qray.point import CPU, CUDA, Point
from qray.reasons import reason_of
from qray.scratch import scratch_folder
from qray.study import Measure

#: A percentile is given only when at least this many samples are expected beyond it.
SAMPLES_BEYOND = 2


#: Set where several processes share the cores: OpenMP's idle threads sleep. By default they spin after each parallel
#: region, on cores that another process could use: two modules of tests took 102 CPU-seconds on 2 cores with 4 other
#: processes busy, and 30 with this.
QUIET_WAITS = {"OMP_WAIT_POLICY": "PASSIVE"}
#: Says that it was qray that set them, so that a measurement can take them back.
QUIET_MARK = "QRAY_QUIET_WAITS"


def wait_quietly() -> None:
    """Have this process, where OpenMP is not loaded yet, and its children wait so; a user's choice stays."""
    if not QUIET_WAITS.keys() & os.environ.keys():
        os.environ.update(QUIET_WAITS | {QUIET_MARK: "1"})


def percentile(sample: np.ndarray, percent: float) -> float | None:
    """A percentile (linear interpolation), or None when the sample is too small to carry it."""
    enough = len(sample) * (100 - percent) >= 100 * SAMPLES_BEYOND
    return float(np.percentile(sample, percent)) if enough else None


@dataclass(frozen=True)
class Latency:
    """Latency of one variant at one point.

    blocks_ms: every call's duration in milliseconds, one list per interleaved block. load_average is of the minute
    before. joules: of all calls, as the machine's own counters have it, idle and all; None where it has none that can
    be read. compute_ms, throughput_clips_s: of a GPU (`gpu.gpu_figures`). error: why it could not be measured.
    """

    blocks_ms: list[list[float]] = field(default_factory=list)
    load_average: float | None = None
    host: str = ""
    cpu_flags: str = ""
    joules: float | None = None
    compute_ms: list[float] = field(default_factory=list)
    throughput_clips_s: float | None = None
    error: str | None = None

    @property
    def n(self) -> int:
        """Number of calls."""
        return sum(map(len, self.blocks_ms))

    def percentile(self, percent: float) -> float | None:
        """A percentile in milliseconds, or None when the sample is too small to carry it."""
        return percentile(np.concatenate([np.asarray(b) for b in self.blocks_ms or [[]]]), percent)

    @cached_property
    def medians(self) -> np.ndarray | None:
        """Median of each block, float64 (rounds,), in milliseconds; None where the sample carries no median at all."""
        if self.percentile(50) is None or not all(self.blocks_ms):
            return None
        medians = np.array([np.median(block) for block in self.blocks_ms])
        return medians if np.isfinite(medians).all() and (medians > 0).all() else None


def interleave(
    calls: Mapping[str, Callable[[], object]], settings: Measure, seed: int = 0,
    around: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> dict[str, list[list[float]]]:  # fmt: skip
    """Time every call in `settings.blocks` rounds whose order is shuffled; milliseconds per call, by block.

    Each variant gets at least `settings.min_calls` calls and `settings.seconds` seconds over all blocks. around: what
    each block of a variant is timed within.
    """
    rng = np.random.default_rng(seed)
    for call in calls.values():
        for _ in range(settings.warmup_calls):
            call()
    per_block = -(-settings.min_calls // settings.blocks)
    samples: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(settings.blocks):
        for name in rng.permutation(list(calls)):
            call, spent = calls[str(name)], 0.0
            block: list[float] = []
            # The caches still hold another variant's weights: one call to bring one's own back.
            call()
            with around(str(name)):
                while len(block) < per_block or spent < settings.seconds / settings.blocks:
                    started = time.perf_counter_ns()
                    call()
                    elapsed = (time.perf_counter_ns() - started) / 1e6
                    block.append(elapsed)
                    spent += elapsed / 1e3
            samples[str(name)].append(block)
    return samples


def _measure_here(request: Mapping[str, Any]) -> dict[str, Any]:
    """Body of the subprocess: load every artifact, then time them."""
    from qray.engines.artifact import Predict, read_artifact
    from qray.engines.registry import load_artifact

    point = Point(**request["point"])
    settings = Measure.model_validate(request["measure"])
    load = load_average()
    predicts: dict[str, Predict] = {}
    calls: dict[str, Callable[[], object]] = {}
    errors: dict[str, str] = {}
    for key, folder in request["artifacts"].items():
        try:
            artifact = read_artifact(Path(folder))
            predict = load_artifact(artifact, point.threads, point.device, allow_code=True)
            spec = artifact.clip
            shape = (point.batch, spec.frames, spec.image_size, spec.image_size, 3)
            clips = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            calls[key] = partial(predict, clips)
            calls[key]()
            predicts[key] = predict
        except Exception as error:
            # Whatever an engine raises, the others are still measured.
            calls.pop(key, None)
            errors[key] = f"{type(error).__name__}: {reason_of(str(error))}"
    meter, joules = meter_of(point.device), dict.fromkeys(calls, 0.0)

    @contextmanager
    def counted(key: str) -> Iterator[None]:
        before = meter.read() if meter else ()
        yield
        if meter:
            joules[key] += meter.joules(before, meter.read())

    found = {"blocks_ms": interleave(calls, settings, around=counted), "joules": joules if meter else {}}
    if point.device == CUDA and calls:
        from qray.measure.gpu import gpu_figures

        found |= gpu_figures(
            predicts, clips, blocks=settings.blocks, min_calls=settings.min_calls, seconds=settings.seconds
        )
    return found | {
        "errors": errors,
        "load_average": None if np.isnan(load) else load,
        "cpu_flags": " ".join(sorted(cpu_flags())),
    }


def cores(count: int) -> list[int]:
    """`count` of the cores that this process may use; all of them if there are fewer."""
    return usable_cores()[: min(count, usable_cpus())]


def single_process_environment(threads: int) -> dict[str, str]:
    """Environment of a measuring process: every engine's pool as large as the study says, no larger."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    # Nothing runs beside it, as where it will be deployed: its threads wait as the libraries choose.
    ours = {*QUIET_WAITS, QUIET_MARK} if QUIET_MARK in os.environ else set()
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {name: str(threads) for name in names}


def run_subprocess(arguments: Sequence[str], threads: int, timeout_s: float, what: str) -> None:
    """Run `python -m ...` pinned to `threads` cores; engines whose pools ignore the settings stay on them too.

    Raises:
        QrayError: it failed, or took longer than `timeout_s`; names `what` was being measured. Lost: it was killed.
    """
    command = [sys.executable, "-m", *arguments]
    pinned = ",".join(map(str, cores(threads)))
    environment = single_process_environment(threads) | {"QRAY_CORES": pinned}
    # No pipe: what the process has started, and left, would hold its end open, and be waited for without end.
    with tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors,
                                  timeout=timeout_s, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            raise QrayError(
                f"measuring {what} took longer than {timeout_s:.0f} s; lower measure.seconds or blocks"
            ) from None
        errors.seek(0)
        said = reason_of(errors.read().decode(errors="replace")) if done.returncode else ""
    if -done.returncode in (signal.SIGKILL, signal.SIGTERM):
        raise Lost(f"the process that measured {what} was killed")
    if done.returncode:
        raise QrayError(f"measuring {what} failed: {said or f'exit code {done.returncode}'}")


def pin_to_given_cores() -> None:
    """Keep to the cores that the parent chose."""
    given = os.environ.get("QRAY_CORES")
    if given and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in given.split(",")})


def measure_latency(
    artifacts: Mapping[str, Path], point: Point, settings: Measure, timeout_s: float
) -> dict[str, Latency]:
    """Latency of every artifact at one point, interleaved in one subprocess."""
    with scratch_folder("latency") as folder:
        request, response = folder / "request.json", folder / "response.json"
        content = {
            "artifacts": {key: str(path) for key, path in artifacts.items()},
            "point": asdict(point), "measure": settings.model_dump(mode="json"),
        }  # fmt: skip
        request.write_text(json.dumps(content), encoding="utf-8")
        what = f"latency of {len(artifacts)} variants at {point}"
        run_subprocess(["qray.measure.latency", str(request), str(response)], point.threads, timeout_s, what)
        measured = json.loads(response.read_text(encoding="utf-8"))
    # The measuring process is pinned, and would count only the cores that it was left.
    host = (
        host_name() if point.device == CPU else f"{host_name()} with {gpu_name() or 'a GPU that does not say its name'}"
    )
    common = {name: measured[name] for name in ("load_average", "cpu_flags")} | {"host": host}
    return {
        key: Latency(
            measured["blocks_ms"].get(key, []), joules=measured["joules"].get(key), error=measured["errors"].get(key),
            compute_ms=measured.get("compute_ms", {}).get(key, []),
            throughput_clips_s=measured.get("throughput_clips_s", {}).get(key), **common,
        )
        for key in artifacts
    }  # fmt: skip


if __name__ == "__main__":
    pin_to_given_cores()
    result = _measure_here(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
