"""Where each minute of a run went: its phases, and the work inside them, from the records that the run left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qray.atomic import write_json
from qray.judge.index import read_record

PHASES_FILE = "phases.json"
#: The phase in which units run side by side, and the phase that each kind of unit belongs to. A kind that is not here
#: stands in the phase in which it began.
PARALLEL_PHASE = "train, build and evaluate"
MEASURING_PHASE = "measure latency and costs"
KINDS = dict.fromkeys(
    ("train", "validate", "sweep", "trial", "finetune", "build", "evaluate", "memory", "layers", "sensitivity",
     "predict", "mix"), PARALLEL_PHASE,
) | dict.fromkeys(("measure", "serve", "costs"), MEASURING_PHASE)  # fmt: skip


@dataclass(frozen=True)
class UnitTime:
    """How long a unit of work took, and when it began (epoch seconds)."""

    kind: str
    label: str | None
    seconds: float
    started: float


@dataclass(frozen=True)
class Timing:
    """One run: seconds of its phases in order, of the whole, when it began (epoch seconds), and its units."""

    phases: Mapping[str, float]
    total: float
    started: float
    units: tuple[UnitTime, ...]

    def of_kind(self, kind: str) -> list[UnitTime]:
        """Units of one kind, the longest first."""
        return sorted((u for u in self.units if u.kind == kind), key=lambda u: -u.seconds)

    def kinds(self, phase: str) -> list[str]:
        """Kinds of the units of a phase, in the order of KINDS, then those that are not known."""
        found = {u.kind for u in self.units if self._phase(u) == phase}
        return [*(kind for kind in KINDS if kind in found), *sorted(found - KINDS.keys())]

    def _phase(self, unit: UnitTime) -> str | None:
        if unit.kind in KINDS:
            return KINDS[unit.kind]
        end, within = self.started, None
        for phase, seconds in self.phases.items():
            within = phase if unit.started >= end else within
            end += seconds
        return within

    def overlap(self) -> float | None:
        """How many units ran at once on average: their seconds over the seconds of the phase they ran in."""
        wall = self.phases.get(PARALLEL_PHASE, 0.0)
        busy = {kind: sum(u.seconds for u in self.of_kind(kind)) for kind in self.kinds(PARALLEL_PHASE)}
        # A search for a mix is the wait for what it asks for.
        busy.pop("mix", None)
        # A sweep is its trials, which run side by side, or the wait for them: not both.
        sweep = max(busy.pop("sweep", 0.0), busy.pop("trial", 0.0))
        together = sum(busy.values()) + sweep
        return together / wall if wall > 0 and together > 0 else None


def write_phases(out: Path, phases: Mapping[str, float], total: float, started: float) -> None:
    """Record the phases of a run that did work."""
    write_json(out / "units" / PHASES_FILE, {"phases": dict(phases), "total": total, "started": started})


def read_timing(out: Path, units: Iterable[Mapping[str, Any]]) -> Timing | None:
    """The last run into OUT that did work, with those that it finished of all units (`index.read_units`); None where
    none was recorded."""
    record = read_record(out / "units" / PHASES_FILE, "phases")
    if record is None:
        return None
    done = tuple(
        UnitTime(unit["kind"], unit.get("label"), float(unit["seconds"]), unit["started"]) for unit in units
        if isinstance(unit.get("seconds"), int | float) and unit["started"] >= record["started"]
    )  # fmt: skip
    return Timing(record["phases"], record["total"], record["started"], done)
