"""OUT as a run left it: study, index, records of units, predictions, rejected clips. What is damaged is a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from qray.errors import QrayError
from qray.escape import command
from qray.judge.index import Index, began, read_index, read_record, unit_files
from qray.judge.timing import Timing, read_timing
from qray.study import Study
from qray.study_files import load_study

REJECTED = ("row", "clip", "reason")
#: What a row, a card or a plot says that another command mends.
AGAIN = "the same `qray run` command makes it again"


@dataclass(frozen=True)
class Run:
    """What OUT holds. units: every readable record of units/ by (kind, key), with its "kind" and "key" and with when it
    began ("started"). rejected: row, clip, reason. notes: sentences on what could not be read."""

    out: Path
    study: Study
    index: Index
    units: Mapping[tuple[str, str], Mapping[str, Any]]
    rejected: pd.DataFrame
    timing: Timing | None
    notes: tuple[str, ...]

    @property
    def ended_at(self) -> datetime:
        """When the last unit of OUT had ended, in UTC; those do not count that do not say when."""
        ends = [unit["started"] + unit["seconds"] for unit in self.units.values() if "seconds" in unit]
        return datetime.fromtimestamp(max(ends, default=self.index.started), UTC)

    def attempt(self, kind: str, key: str | None) -> Mapping[str, Any] | None:
        """A unit's record, also of an attempt in which something failed ("unfinished": what); or None."""
        return self.units.get((kind, key)) if key is not None else None

    def unit(self, kind: str, key: str | None) -> Mapping[str, Any] | None:
        """A finished unit's record, or None."""
        record = self.attempt(kind, key)
        return None if record is None or record.get("unfinished") else record

    def shared(self, kind: str) -> Mapping[str, Any] | None:
        """The finished unit of a kind that all variants share, or None."""
        return self.unit(kind, self.index.run.get(kind))


def read_run(out: Path) -> Run:
    """Read OUT.

    Raises:
        QrayError: OUT is not the output of a run, or its study.yaml or run.json cannot be read. Everything less than
            that becomes a note.
    """
    if not out.is_dir():
        raise QrayError(f"{out}: no such folder; name the output folder of a run")
    if not (out / "study.yaml").is_file():
        again = command("qray", "run", "all", "--out", out)
        raise QrayError(f"{out}: not the output of a run (study.yaml is missing); `{again}` makes one")
    study, index = load_study(str(out / "study.yaml")), read_index(out)
    if {variant.name for variant in study.variants} != set(index.variants):
        raise QrayError(f"{out}: study.yaml and run.json name other variants, so they are of two runs; run again")
    notes: list[str] = []
    if study.verdict.model_dump(mode="json") != index.verdict:
        notes.append(
            f"study.yaml was changed after the run (margin {index.verdict['margin']:g}, now {study.verdict.margin:g}): "
            "what its verdict section says now was not declared before the run"
        )
    units, rejected = _units(out, notes), _rejected(out, notes)
    return Run(out, study, index, units, rejected, read_timing(out), tuple(notes))


def _units(out: Path, notes: list[str]) -> dict[tuple[str, str], dict[str, Any]]:
    units, broken = {}, 0
    for path in unit_files(out):
        record = read_record(path)
        if record is None:
            broken += 1
            continue
        kind, _, key = path.stem.partition("-")
        units[kind, key] = record | {"started": began(record, path), "kind": kind, "key": key}
    if broken:
        notes.append(f"{broken} records in units/ cannot be read; {AGAIN}")
    return units


def _rejected(out: Path, notes: list[str]) -> pd.DataFrame:
    try:
        frame = read_frame(out, "rejected.parquet", REJECTED)
    except ValueError as error:
        notes.append(f"{error}: which clips were left out is not known")
        return pd.DataFrame(columns=list(REJECTED))
    return frame


def read_frame(out: Path, relative: str, columns: Iterable[str]) -> pd.DataFrame:
    """A Parquet file of OUT that must have these columns.

    Raises:
        ValueError: it cannot be used; the message says why, with the path inside OUT.
    """
    path = out / relative
    if not path.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{relative} leads out of {out}")
    try:
        frame: pd.DataFrame = pq.read_table(path, partitioning=None).to_pandas()
    except FileNotFoundError:
        raise ValueError(f"{relative} is missing") from None
    except (pa.ArrowException, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{relative} cannot be read ({first})") from None
    lacking = [name for name in columns if name not in frame.columns]
    if lacking:
        raise ValueError(f"{relative} has no column {', '.join(lacking)}")
    return frame


def read_predictions(out: Path, relative: str) -> pd.DataFrame:
    """Predictions of a split: clip (str), target and prediction (float64; NaN where the clip failed).

    Raises:
        ValueError: there are none that can be used; the message says why.
    """
    frame = read_frame(out, relative, ("clip", "target", "prediction"))
    if not all(pd.api.types.is_numeric_dtype(frame[name]) for name in ("target", "prediction")):
        raise ValueError(f"{relative} holds targets or predictions that are no numbers")
    if frame["clip"].duplicated().any():
        raise ValueError(f"{relative} names clips twice")
    if not np.isfinite(frame["target"].to_numpy(np.float64)).all():
        raise ValueError(f"{relative} holds targets that are not finite")
    return frame.astype({"target": np.float64, "prediction": np.float64})
