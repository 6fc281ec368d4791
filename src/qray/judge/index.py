"""run.json: which unit made what, how units ended that are not finished, and for which machine. The index of OUT.

And the records of finished units, read with tolerance: half a record, or one just replaced, is as good as none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from qray.atomic import write_json
from qray.errors import QrayError
from qray.escape import command
from qray.graph.unit import Result
from qray.json_text import read_json
from qray.judge.records import Seconds, is_record
from qray.measure.isa import Machine
from qray.point import CPU, Point
from qray.study_verdict import Verdict
from qray.yaml_text import dotted, short

FILE = "run.json"
FORMAT = 3
#: Part of paths in OUT.
Key = Annotated[str, Field(pattern="^[0-9a-f]+$")]
Number = Annotated[int, Field(ge=1, lt=2**31)]


@dataclass(frozen=True)
class TrialState:
    """A QAT trial of the sweep: `state` of `halving.Standing`, and the key of its newest record, if it has one."""

    name: str
    key: Key
    settings: Mapping[str, Any]
    state: str
    epochs: int
    record: Key | None


@dataclass(frozen=True)
class PointUnits:
    """What was or is to be measured at one point: the key of the latency of all artifacts of its device together, of
    the memory of each variant's, and of cold starts and streams where the study asks for them."""

    threads: Number
    batch: Number
    latency: Key
    memory: Mapping[str, Key]
    device: str = CPU
    serving: Key | None = None

    @property
    def point(self) -> Point:
        """Where."""
        return Point(device=self.device, threads=self.threads, batch=self.batch)


@dataclass(frozen=True)
class Index:
    """What run.json holds."""

    #: Of the last run into OUT, and when it began (epoch seconds).
    stage: str
    started: Seconds
    #: That the keys are for: a cluster's least.
    machine: Machine
    #: Keys by kind of the units that all variants share, and of each variant's own.
    run: Mapping[str, Key]
    variants: Mapping[str, Mapping[str, Key]]
    #: Key of the mean predictor's evaluation.
    baseline: Key
    trials: tuple[TrialState, ...]
    points: tuple[PointUnits, ...]
    #: How units ended that no run has finished, by key.
    ended: Mapping[str, Result]
    #: The study's `verdict` section as the run had it, which study.yaml must still have.
    verdict: Mapping[str, Any]


_INDEX = TypeAdapter(Index)


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
        record = read_json(path)
        if (found := record.pop("format")) != FORMAT:
            raise QrayError(f"{path}: format {found}, this qray reads format {FORMAT}; {again}")
        index = _INDEX.validate_python(record)
        _check(index)
    except FileNotFoundError:
        raise QrayError(f"{path}: no such file, so {out} is not the output of a run; {again}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise QrayError(f"{path}: not readable as the index of a run ({_why(error)}); {again}") from None
    return index


def _check(index: Index) -> None:
    """What must be there for an index to be whole, beside the types of what is there. Raises ValueError."""
    Verdict.model_validate(index.verdict)
    for name, keys in index.variants.items():
        if not {"build", "evaluate"} <= keys.keys():
            raise ValueError(f"a unit of {name!r} is missing")
    for trial in index.trials:
        if not all(isinstance(trial.settings.get(name), int) for name in ("epochs", "weight_bits")):
            raise ValueError(f"epochs and weight_bits of trial {trial.name!r} are missing")
    if not all(is_record("", result.record) for result in index.ended.values()):
        raise ValueError("how a unit ended is told in another way")


def _why(error: Exception) -> str:
    """One line, of a length that a terminal shows."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{short(dotted(first['loc']))}: {first['msg']}"
    return short(f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error))


def unit_files(out: Path, kind: str = "[!.]*") -> list[Path]:
    """Files of the records of one kind, or of all, by name; temporary ones left out."""
    return sorted((out / "units").glob(f"{kind}-*.json"))


def read_units(out: Path) -> tuple[list[dict[str, Any]], int]:
    """Every readable record of units/, with its "kind" and "key" and when its work began ("started", epoch seconds; one
    without a time of its own was written when its work ended); and how many cannot be read."""
    files, units = unit_files(out), []
    for path in files:
        kind, _, key = path.stem.partition("-")
        if (record := read_record(path, kind)) is not None:
            units.append({"started": path.stat().st_mtime, **record, "kind": kind, "key": key})
    return units, len(files) - len(units)


def read_record(path: Path, kind: str) -> dict[str, Any] | None:
    """A record, or None where the file cannot be read as one of this kind (`records.is_record`)."""
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and is_record(kind, record) else None
