"""The files of OUT, read with tolerance: what is damaged, missing or of another version becomes a sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from qray.errors import QrayError
from qray.escape import command
from qray.results.schema import RESULTS
from qray.results.unit_records import began, read_record, unit_files
from qray.study import Study
from qray.study_files import load_study

#: Without the path of OUT: a note stands in the report, which is the same wherever OUT is.
ANEW = "`qray run table --out OUT` writes it anew"
#: As the study has it for variants; trials are named after them.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: Without these a table names no variant.
NEEDED = ("variant", "method", "engine", "status")
REJECTED = ("row", "clip", "reason")


@dataclass(frozen=True)
class RunFiles:
    """What OUT holds: rows of the table (every column of this version, None where the file lacks it), the records of
    units/ with their "kind" and "key", rejected clips (row, clip, reason), and sentences on what could not be read."""

    out: Path
    study: Study | None
    rows: tuple[dict[str, Any], ...]
    units: tuple[dict[str, Any], ...]
    rejected: pd.DataFrame
    notes: tuple[str, ...]


def read_files(out: Path) -> RunFiles:
    """Read OUT.

    Raises:
        QrayError: there is neither a table nor a study that can be read.
    """
    notes: list[str] = []
    if not out.is_dir():
        raise QrayError(f"{out}: no such folder; name the output folder of a run")
    study = _study(out, notes)
    units = _units(out, notes)
    rows = _rows(out, notes)
    if rows is None and study is None:
        found = "; ".join(notes)
        raise QrayError(
            f"{out}: not the output of a run ({found}); `{command('qray', 'run', 'all', '--out', out)}` makes one"
        )
    if rows is None and study is not None:
        rows = _rows_of_study(study, units)
    return RunFiles(out, study, tuple(rows or ()), units, _rejected(out, notes), tuple(notes))


def _study(out: Path, notes: list[str]) -> Study | None:
    path = out / "study.yaml"
    try:
        return load_study(str(path))
    except (QrayError, OSError) as error:
        fault = str(error).splitlines()[0] if path.is_file() else "study.yaml is missing"
        notes.append(f"{fault}; margins are those of the table, and thresholds are not known")
        return None


def _rows(out: Path, notes: list[str]) -> list[dict[str, Any]] | None:
    path = out / "results.parquet"
    if not path.is_file():
        notes.append(f"results.parquet is missing; {ANEW}")
        return None
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        notes.append(f"results.parquet cannot be read ({_line(error)}); {ANEW}")
        return None
    lacking = [name for name in NEEDED if name not in table.column_names]
    if lacking:
        notes.append(f"results.parquet has no column {', '.join(lacking)}, so it names no variants; {ANEW}")
        return None
    older = [name for name in RESULTS.names if name not in table.column_names]
    if older:
        some = f"{', '.join(older[:3])} and {len(older) - 3} more" if len(older) > 4 else ", ".join(older)
        notes.append(f"results.parquet was written by another version, without {some}; {ANEW}")
    found = [dict.fromkeys(RESULTS.names) | {k: _finite(v) for k, v in row.items()} for row in table.to_pylist()]
    # Cards and plots are files of these names: a table from somebody else may not choose where they are written.
    rows = [row for row in found if NAME.fullmatch(str(row["variant"]))]
    if lost := len(found) - len(rows):
        which = "1 row of results.parquet names" if lost == 1 else f"{lost} rows of results.parquet name"
        notes.append(f"{which} no variant and cannot be used; {ANEW}")
    for row in rows:
        row["stage"] = row["stage"] or ("baseline" if row["method"] == "baseline" else "variant")
    return rows


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _rows_of_study(study: Study, units: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where there is no table: a row per variant of the study, without a figure."""
    evaluated = {unit.get("label") for unit in units if unit["kind"] == "evaluate"}
    return [
        dict.fromkeys(RESULTS.names)
        | {"variant": v.name, "method": v.method, "engine": v.engine, "stage": "variant", "seed": study.seed,
           "margin": study.verdict.margin, "split": "TEST"}
        | ({"status": "ok"} if f"evaluate {v.name}" in evaluated else {"status": "failed", "reason": "not evaluated"})
        for v in study.variants
    ]  # fmt: skip


def _units(out: Path, notes: list[str]) -> tuple[dict[str, Any], ...]:
    units, broken = [], 0
    for path in unit_files(out):
        record = read_record(path)
        if record is None:
            broken += 1
            continue
        kind, _, key = path.stem.partition("-")
        units.append(record | {"started": began(record, path), "kind": kind, "key": key})
    if broken:
        notes.append(f"{broken} records in units/ cannot be read; the same `qray run` command makes them again")
    return tuple(units)


def newest(units: Sequence[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    """The record of a kind whose work began last, or None."""
    return max((u for u in units if u["kind"] == kind), key=lambda u: u["started"], default=None)


def _rejected(out: Path, notes: list[str]) -> pd.DataFrame:
    path = out / "rejected.parquet"
    try:
        frame: pd.DataFrame = pq.read_table(path, partitioning=None).to_pandas()
    except FileNotFoundError:
        notes.append("rejected.parquet is missing: which clips were left out is not known")
    except (pa.ArrowException, OSError) as error:
        notes.append(f"rejected.parquet cannot be read ({_line(error)})")
    else:
        if set(REJECTED) <= set(frame.columns):
            return frame
        notes.append("rejected.parquet lacks its columns row, clip and reason")
    return pd.DataFrame(columns=list(REJECTED))


def find_predictions(files: RunFiles, row: dict[str, Any]) -> pd.DataFrame:
    """TEST predictions of a row: clip (str), target and prediction (float64; NaN where the clip failed).

    By the row's own path; for a table without it, by the records of evaluations, whose label names the variant. OUT
    may hold evaluations of other settings too: the one with the row's MAE is taken, else the newest.

    Raises:
        ValueError: there are none that can be used; the message says why.
    """
    if row["predictions"]:
        return _read_predictions(files.out, row["predictions"])
    if row["stage"] == "baseline":
        return _read_predictions(files.out, f"predictions/variant={row['key']}/test.parquet")
    label = f"evaluate {row['variant']}"
    evaluations = [u for u in files.units if u["kind"] == "evaluate" and u.get("label") == label and u.get("files")]
    faults = []
    frames = []
    for unit in sorted(evaluations, key=lambda u: -u["started"]):
        try:
            frames.append(_read_predictions(files.out, str(unit["files"][0])))
        except ValueError as error:
            faults.append(str(error))
    if not frames:
        raise ValueError(faults[0] if faults else "no evaluation of it is recorded in units/")
    return next((f for f in frames if row["mae"] is not None and np.isclose(_mae(f), row["mae"])), frames[0])


def _mae(frame: pd.DataFrame) -> float:
    return float((frame["prediction"] - frame["target"]).abs().mean())


def _read_predictions(out: Path, relative: str) -> pd.DataFrame:
    path = out / relative
    if not path.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{relative} leads out of {out}")
    try:
        frame = pq.read_table(path, partitioning=None).to_pandas()
    except FileNotFoundError:
        raise ValueError(f"{relative} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{relative} cannot be read ({_line(error)})") from None
    lacking = [name for name in ("clip", "target", "prediction") if name not in frame.columns]
    if lacking:
        raise ValueError(f"{relative} has no column {', '.join(lacking)}")
    if not all(pd.api.types.is_numeric_dtype(frame[name]) for name in ("target", "prediction")):
        raise ValueError(f"{relative} holds targets or predictions that are no numbers")
    if frame["clip"].duplicated().any():
        raise ValueError(f"{relative} names clips twice")
    if not np.isfinite(frame["target"].to_numpy(np.float64)).all():
        raise ValueError(f"{relative} holds targets that are not finite")
    return frame.astype({"target": np.float64, "prediction": np.float64})
