"""The table of a run in a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from qray.errors import QrayError
from qray.escape import command
from qray.judge.index import FILE
from qray.judge.row import COLUMNS, RESULTS, Row, from_table, is_words
from qray.point import CPU
from qray.words.document import Cell, Grid, Tone
from qray.words.figures import cell, number
from qray.words.phrases import (
    TONES,
    left_words,
    mixed_words,
    not_to_ship,
    pay_words,
    settings_words,
    settle_words,
    state_words,
)
from qray.words.terminal import GAP, say, table_of, to_json


@dataclass(frozen=True)
class _Column:
    name: str
    title: str
    rank: int
    cells: list[str]

    @property
    def width(self) -> int:
        return max(cell_len(text) for text in (self.title, *self.cells))


def read_results(out: Path) -> pa.Table:
    """Read OUT/results.parquet.

    Raises:
        QrayError: it is not there, is no Parquet file, or lacks columns that this version writes.
    """
    path = out / "results.parquet"
    anew = f"`{command('qray', 'run', 'table', out)}` writes it anew"
    if not path.is_file():
        known = "table" if (out / FILE).is_file() else "all --out"
        raise QrayError(f"{path}: no such file; `{command('qray', 'run', *known.split(), out)}` makes it")
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowInvalid, OSError) as error:
        raise QrayError(f"{path}: not a readable Parquet file ({error}); {anew}") from None
    missing = [name for name in RESULTS.names if name not in table.column_names]
    if missing:
        raise QrayError(f"{path}: written by another version, without {', '.join(missing[:5])}; {anew}")
    return table


def _order(row: Row) -> tuple[int, str, bool, float, str]:
    reference = (row.method, row.engine, bool(row.cuda_graph)) == ("fp32", "eager", False)
    group = {"variant": 0, "baseline": 1}.get(row.stage, 2)
    if row.status != "ok":
        group = max(group, 1)
    key = row.mae if row.stage == "trial" else row.latency_p50_ms
    return group, row.device or "", not reference, key if key is not None else float("inf"), row.variant


def sorted_rows(table: pa.Table) -> list[Row]:
    """Of each device FP32 eager, then by latency; the baseline; trials by VAL MAE."""
    return sorted(from_table(table), key=_order)


def results_json(table: pa.Table) -> str:
    """All rows and columns as a JSON list; null for what was not measured, times in ISO 8601."""

    def plain(value: Any) -> Any:
        return value.replace(tzinfo=UTC).isoformat() if isinstance(value, datetime) else value

    return to_json([{name: plain(value) for name, value in vars(row).items()} for row in sorted_rows(table)])


def legend() -> Grid:
    """What each column of results.parquet means."""
    rows = ((Cell(name), Cell(column.unit or ""), Cell(column.meaning)) for name, column in COLUMNS.items())
    return Grid(("column", "unit", "meaning"), tuple(rows), "Columns of results.parquet")


def render(table: pa.Table, width: int, split: str = "TEST") -> Table | None:
    """The variants as a rich table of at most `width` columns: what does not fit is left to results.parquet. split: of
    those that predicted it; VAL are those that a kit was carried elsewhere with. None where there is none."""
    rows = [row for row in sorted_rows(table) if row.stage != "trial" and row.status == "ok" and row.split == split]
    if not rows:
        return None
    columns = [
        _Column(name, column.title or name, column.rank, [cell(row, name) for row in rows])
        for name, column in COLUMNS.items() if column.rank is not None
    ]  # fmt: skip
    if several_points(rows) or split != "TEST":
        columns.insert(1, _Column("", "thr/b", 0, [at_words(row) for row in rows]))
    while sum(column.width + GAP for column in columns) - GAP > width and any(column.rank for column in columns):
        columns.remove(max(columns, key=lambda column: column.rank))
    cells = [
        tuple(Cell(column.cells[at], _tone(row, column.name)) for column in columns) for at, row in enumerate(rows)
    ]
    figures = frozenset(at for at, column in enumerate(columns) if not column.name or not is_words(column.name))
    grid = table_of(Grid(tuple(column.title for column in columns), tuple(cells), "", figures))
    for shown, column in zip(grid.columns, columns, strict=True):
        # Where the last columns do not fit either, names give way, not figures.
        shown.min_width = None if column.name == "variant" else column.width
    return grid


def at_words(row: Row) -> str:
    """Where a row was measured, as briefly as a table's cell has room for."""
    if row.point is None:
        return ""
    return f"{'' if row.device == CPU else f'{row.device} '}{row.threads}/{row.batch}"


def _tone(row: Row, name: str) -> Tone:
    if name == "verdict":
        return "bad" if row.guardrails else TONES.get(row.verdict, "")
    if name == "variant" and row.stage != "variant":
        return "dim"
    return "bad" if name == "mae" and row.stage == "variant" and row.beats_baseline is False else ""


def several_points(rows: Iterable[Row]) -> bool:
    """Whether rows were measured at several points, so that each must say at which."""
    return len({row.point for row in rows} - {None}) > 1


def print_results(table: pa.Table, console: Console) -> None:
    """The variants, what is missing and why, the sweep, and in red a baseline that was not beaten."""
    if (grid := render(table, console.width)) is not None:
        console.print(grid)
    rows = sorted_rows(table)
    several = several_points(row for row in rows if row.status == "ok")
    variants = [row for row in rows if row.stage == "variant"]
    ok = next((row for row in variants if row.mae is not None and row.split == "TEST"), None)
    if ok is not None:
        points = "; thr/b: threads and batch" if several else ""
        hosts = dict.fromkeys(row.host for row in rows if row.latency_p50_ms is not None and row.split == "TEST")
        latency = f"; latency per call on {' and '.join(map(str, hosts))}{points}" if hosts else ""
        say(console, f"MAE on {ok.split}, {ok.n_clips} clips; margin {ok.margin:g}{latency}", "dim")
    carried = next((row for row in variants if row.mae is not None and row.split == "VAL"), None)
    if carried is not None and (grid := render(table, console.width, "VAL")) is not None:
        say(console, f"\nOn devices that kits were carried to, MAE on {carried.n_clips} VAL clips:")
        console.print(grid)
    lines: dict[str, str] = {}
    for row in variants:
        if row.reason:
            tone = "bad" if row.status == "failed" or row.beats_baseline is False else "unsure"
            lines[f"{row.variant}: {state_words(row.status, row.reason)}"] = tone
    lines |= {f"! {row.variant}: {not_to_ship(row.guardrails)}": "bad" for row in rows if row.guardrails}
    for row in rows:
        if row.verdict == "inconclusive":
            lines[f"{row.variant}: {settle_words(row.n_clips or 0, row.clips_to_settle)}"] = "unsure"
    lines |= {f"{row.variant}: {left_words(row)}": "unsure" for row in rows if row.fp32_layers}
    lines |= {f"{row.variant}: {mixed_words(row)}": "dim" for row in rows if row.evaluations}
    # Keys, because a variant measured at several points has a row for each.
    for line, tone in lines.items():
        say(console, line, tone)
    for row in variants:
        # Those that are not known to be faster than FP32 on its fastest engine.
        if row.latency_p50_ms is not None and not row.pays and (words := pay_words(row)):
            where = f" at {row.point}" if several and row.point else ""
            say(console, f"{row.variant}{where}: {words}", "unsure")
    _print_sweep([row for row in rows if row.stage == "trial"], console)


def _print_sweep(trials: Sequence[Row], console: Console) -> None:
    if trials:
        say(console, f"\nQAT sweep, {len(trials)} trials by VAL MAE:")
    for row in trials:
        tail = f" ({row.reason})" if row.reason else ""
        say(console, f"  {number(row.mae, 3)}  {row.variant}: {settings_words(row)}{tail}", "dim")
