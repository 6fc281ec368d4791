"""run.json: which unit made what, how units ended that are not finished, and for which machine. The index of OUT.

And the records of finished units, read with tolerance: half a record, or one just replaced, is as good as none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qray.atomic import write_json
from qray.errors import QrayError
from qray.escape import command
from qray.graph.unit import Result
from qray.measure.isa import Machine
from qray.point import CPU, Point

FILE = "run.json"
FORMAT = 3


@dataclass(frozen=True)
class TrialState:
    """A QAT trial of the sweep: `state` of `halving.Standing`, and the key of its newest record, if it has one."""

    name: str
    key: str
    settings: Mapping[str, Any]
    state: str
    epochs: int
    record: str | None


@dataclass(frozen=True)
class PointUnits:
    """What was or is to be measured at one point: the key of the latency of all artifacts together, and of the memory
    of each variant's."""

    threads: int
    batch: int
    latency: str
    memory: Mapping[str, str]
    device: str = CPU

    @property
    def point(self) -> Point:
        """Where."""
        return Point(device=self.device, threads=self.threads, batch=self.batch)


@dataclass(frozen=True)
class Index:
    """What run.json holds."""

    #: Of the last run into OUT, and when it began (epoch seconds).
    stage: str
    started: float
    #: That the keys are for: a cluster's least.
    machine: Machine
    #: Keys by kind of the units that all variants share, and of each variant's own.
    run: Mapping[str, str]
    variants: Mapping[str, Mapping[str, str]]
    #: Key of the mean predictor's evaluation.
    baseline: str
    trials: tuple[TrialState, ...]
    points: tuple[PointUnits, ...]
    #: How units ended that no run has finished, by key.
    ended: Mapping[str, Result]
    #: The study's `verdict` section as the run had it, which study.yaml must still have.
    verdict: Mapping[str, Any]


def write_index(out: Path, index: Index) -> None:
    """Write OUT/run.json."""
    write_json(out / FILE, {"format": FORMAT, **asdict(index)})


def read_index(out: Path) -> Index:
    """Read OUT/run.json.

    Raises:
        QrayError: OUT has none, or one that is damaged or of another format.
    """
    path = out / FILE
    again = f"`{command('qray', 'run', 'all', '--out', out)}` writes it"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if (found := record.pop("format")) != FORMAT:
            raise QrayError(f"{path}: format {found}, this qray reads format {FORMAT}; {again}")
        return Index(
            **record
            | {
                "machine": Machine(**record["machine"]),
                "trials": tuple(TrialState(**trial) for trial in record["trials"]),
                "points": tuple(PointUnits(**point) for point in record["points"]),
                "ended": {key: Result(**ended) for key, ended in record["ended"].items()},
            }
        )
    except FileNotFoundError:
        raise QrayError(f"{path}: no such file, so {out} is not the output of a run; {again}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise QrayError(f"{path}: not readable as the index of a run ({error}); {again}") from None


def unit_files(out: Path, kind: str = "[!.]*") -> list[Path]:
    """Files of the records of one kind, or of all, by name; temporary ones left out."""
    return sorted((out / "units").glob(f"{kind}-*.json"))


def read_units(out: Path) -> tuple[list[dict[str, Any]], int]:
    """Every readable record of units/, with its "kind" and "key" and when its work began ("started", epoch seconds; one
    without a time of its own was written when its work ended); and how many cannot be read."""
    files, units = unit_files(out), []
    for path in files:
        if (record := read_record(path)) is not None:
            kind, _, key = path.stem.partition("-")
            units.append({"started": path.stat().st_mtime, **record, "kind": kind, "key": key})
    return units, len(files) - len(units)


def read_record(path: Path) -> dict[str, Any] | None:
    """A record, or None where the file cannot be read as one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
