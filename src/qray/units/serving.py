"""Cold starts and concurrent streams of all artifacts at one point, one after the other, on a node that does nothing
else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qray.errors import QrayError
from qray.graph.store import Files, unpack_folder
from qray.graph.unit import Resources, Task, Unit
from qray.measure.serving import Served, measure_serving
from qray.point import Point
from qray.scratch import scratch_folder
from qray.study import Serving
from qray.units.context import RunContext
from qray.units.devices import device_of, on_gpu
from qray.units.latency import SECONDS_PER_ARTIFACT, artifacts_of, unfinished


def serving_unit(settings: Serving, at: Point, builds: Sequence[Unit], gpu: str | None = None) -> Unit:
    """All artifacts of a device that there are, at one point. gpu: of the run (`Machine.gpu_name`)."""
    depends = at.depends() | on_gpu(at.device, gpu) | {"serving": settings.identity()}
    return Unit("serve", str(at), Servings(at, settings, tuple(builds)), depends, settled=tuple(builds),
                title=f"measure cold starts and streams, {at}")  # fmt: skip


@dataclass
class Servings(Task):
    """Alone on its node. An artifact that fails is a reason of its own, and is tried again with all others."""

    at: Point
    settings: Serving
    builds: tuple[Unit, ...]

    def __post_init__(self) -> None:
        self.resources = Resources(exclusive=True, **device_of(self.at.device))

    def start(self, unit: Unit, run: RunContext) -> Any:
        keys, files, flags = artifacts_of(self.builds, run)
        return run.backend.submit(unit, serving, self.at, self.settings, keys, *files, needs=flags)

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any]:
        return value | unfinished("cold starts and streams", self.builds, value["served"])


def serving(at: Point, settings: Serving, keys: Sequence[str], *artifacts: Files) -> Iterator[dict[str, Any]]:
    """{"served": {key: Served as a dict}, and the point}, of each artifact more, of which come its key and files: many
    artifacts take longer than a unit may be silent."""
    limit = SECONDS_PER_ARTIFACT * (settings.cold_starts + sum(settings.streams))
    limit += 10 * settings.seconds * len(settings.streams)
    found: dict[str, Any] = {}
    for key, files in zip(keys, artifacts, strict=True):
        with scratch_folder("serve") as scratch:
            unpack_folder(files, scratch / key)
            try:
                found[key] = measure_serving(scratch / key, at, settings, limit)
            except QrayError as error:
                found[key] = asdict(Served(error=str(error)))
        yield {"served": found, **asdict(at)}
