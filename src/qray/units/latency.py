"""Latency of all artifacts at one point, interleaved, on a node that does nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qray.graph.store import Files, unpack_folder
from qray.graph.unit import Resources, Skipped, Task, Unit
from qray.measure.latency import measure_latency
from qray.point import Point
from qray.scratch import scratch_folder
from qray.study import Measure
from qray.units.context import RunContext
from qray.units.devices import device_of, on_gpu

#: Loading an artifact and its first calls take some seconds; a busy or slow machine gets many times that.
SECONDS_PER_ARTIFACT = 60.0


def latency_unit(measure: Measure, at: Point, builds: Sequence[Unit], gpu: str | None = None) -> Unit:
    """All artifacts of a device that there are, at one point. gpu: of the run (`Machine.gpu_name`)."""
    depends = at.depends() | on_gpu(at.device, gpu) | {"measure": measure.of_a_point()}
    return Unit("measure", str(at), Latencies(at, tuple(builds)), depends, settled=tuple(builds),
                title=f"measure latency, {at}")  # fmt: skip


@dataclass
class Latencies(Task):
    """Alone on its node. An artifact that fails is a reason of its own, and is tried again with all others."""

    at: Point
    builds: tuple[Unit, ...]

    def __post_init__(self) -> None:
        self.resources = Resources(exclusive=True, **device_of(self.at.device))

    def start(self, unit: Unit, run: RunContext) -> Any:
        keys, files, flags = artifacts_of(self.builds, run)
        return run.backend.submit(unit, latency, self.at, run.study.measure, keys, *files, needs=flags)

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any]:
        return value | unfinished("latency", self.builds, value["latency"])


def artifacts_of(builds: Sequence[Unit], run: RunContext) -> tuple[tuple[str, ...], tuple[Any, ...], set[str]]:
    """Keys and files of the artifacts that there are, and the CPU flags that one or another needs.

    Raises:
        Skipped: there are none.
    """
    artifacts = {build.key: run.artifact(build) for build in builds if run.store.finished(build)}
    if not artifacts:
        raise Skipped("no artifact was built")
    files, needs = zip(*artifacts.values(), strict=True)
    return tuple(artifacts), files, {flag for each in needs for flag in each}


def unfinished(what: str, builds: Sequence[Unit], measured: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What a record says of artifacts with an "error", by key: another attempt will be made."""
    names = {build.key: build.name for build in builds}
    errors = [f"{names[key]}: {found['error']}" for key, found in measured.items() if found["error"]]
    return {"unfinished": f"{what} not measured of {'; '.join(errors)}"} if errors else {}


def latency(at: Point, settings: Measure, keys: Sequence[str], *artifacts: Files) -> dict[str, Any]:
    """{"latency": {key: Latency as a dict}, and the point} of all artifacts, interleaved; of each its key and files."""
    with scratch_folder("measure") as scratch:
        folders = {key: scratch / key for key in keys}
        for key, files in zip(keys, artifacts, strict=True):
            unpack_folder(files, folders[key])
        limit = len(artifacts) * (SECONDS_PER_ARTIFACT + 10 * settings.seconds)
        measured = measure_latency(folders, at, settings, limit)
    calls = {key: asdict(value) for key, value in measured.items()}
    return {"latency": calls, **asdict(at)}
