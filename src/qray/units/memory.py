"""Peak memory of one artifact at one point, which does not mind a neighbour as latency does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qray.graph.store import Files, unpack_folder
from qray.graph.unit import Resources, Task, Unit
from qray.measure.memory import measure_memory
from qray.point import Point
from qray.scratch import scratch_folder
from qray.units.context import RunContext
from qray.units.devices import device_of, on_gpu
from qray.units.latency import SECONDS_PER_ARTIFACT


def memory_unit(at: Point, build: Unit, gpu: str | None = None) -> Unit:
    """One artifact at one point. gpu: of the run (`Machine.gpu_name`)."""
    depends = {"artifact": build} | at.depends() | on_gpu(at.device, gpu)
    return Unit("memory", f"{build.name}, {at}", Memory(at, build), depends,
                title=f"memory of {build.name}, {at}")  # fmt: skip


@dataclass
class Memory(Task):
    """A process of its own that loads the artifact."""

    at: Point
    build: Unit

    def __post_init__(self) -> None:
        self.resources = Resources(**device_of(self.at.device))

    def start(self, unit: Unit, run: RunContext) -> Any:
        files, needs = run.artifact(self.build)
        return run.backend.submit(unit, memory, self.build.key, files, self.at, needs=needs)

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any]:
        return value


def memory(key: str, files: Files, at: Point) -> dict[str, Any]:
    """{"peak_rss_mb"}."""
    with scratch_folder("memory") as scratch:
        folder = scratch / key
        unpack_folder(files, folder)
        # Others run beside it.
        return {"peak_rss_mb": measure_memory(folder, at, 5 * SECONDS_PER_ARTIFACT)}
