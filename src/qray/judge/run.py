"""OUT as a run left it: study, index, records of units, predictions, rejected clips. What is damaged is a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from qray.errors import QrayError
from qray.escape import command
from qray.judge.clips import read_columns
from qray.judge.index import Index, read_index, read_units
from qray.judge.timing import Timing, read_timing
from qray.study import Study
from qray.study_files import load_study

REJECTED = ("row", "clip", "reason")


@dataclass(frozen=True)
class Run:
    """What OUT holds. units: every readable record of units/ by (kind, key), with its "kind" and "key" and with when it
    began ("started"). rejected: row, clip, reason. notes: sentences on what could not be read."""

    out: Path
    study: Study
    index: Index
    units: Mapping[tuple[str, str], Mapping[str, Any]]
    rejected: pa.Table
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
    units, broken = read_units(out)
    if broken:
        # A run that goes on takes what it can read for finished.
        notes.append(f"{broken} records in units/ cannot be read, or are none; run again with --fresh")
    rejected, timing = _rejected(out, notes), read_timing(out, units)
    by_key = {(unit["kind"], unit["key"]): unit for unit in units}
    return Run(out, study, index, by_key, rejected, timing, tuple(notes))


def _rejected(out: Path, notes: list[str]) -> pa.Table:
    try:
        return read_columns(out, "rejected.parquet", REJECTED)
    except ValueError as error:
        notes.append(f"{error}: which clips were left out is not known")
        return pa.table({name: [] for name in REJECTED})
