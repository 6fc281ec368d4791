"""The table in a terminal, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qray.errors import QrayError
from qray.escape import command
from qray.judge.index import FILE
from qray.judge.ratio import row_sentence
from qray.judge.row import COLUMNS, RESULTS, Row, from_table, is_words
from qray.terminal import open_console
from qray.words.figures import number

VERDICT_STYLE = {"non-inferior": "green", "inferior": "red", "inconclusive": "yellow"}
#: Blanks between two columns.
GAP = 2
PIPE_WIDTH = 160
Justify = Literal["left", "right"]


@dataclass(frozen=True)
class _Column:
    title: str
    rank: int
    justify: Justify
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
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise QrayError(f"{path}: not a readable Parquet file ({error}); {anew}") from None
    missing = [name for name in RESULTS.names if name not in table.column_names]
    if missing:
        raise QrayError(f"{path}: written by another version, without {', '.join(missing[:5])}; {anew}")
    return table


def _order(row: Row) -> tuple[int, float, str]:
    reference = (row.method, row.engine) == ("fp32", "eager")
    group = 0 if reference else {"variant": 1, "baseline": 2}.get(row.stage, 3)
    if row.status != "ok":
        group = max(group, 2)
    key = row.mae if row.stage == "trial" else row.latency_p50_ms
    return group, key if key is not None else float("inf"), row.variant


def sorted_rows(table: pa.Table) -> list[Row]:
    """FP32 eager, then by latency, the baseline, trials by VAL MAE."""
    return sorted(from_table(table), key=_order)


def to_json(table: pa.Table) -> str:
    """All rows and columns as a JSON list; null for what was not measured, times in ISO 8601."""

    def plain(value: Any) -> Any:
        return value.replace(tzinfo=UTC).isoformat() if isinstance(value, datetime) else value

    rows = [{name: plain(value) for name, value in vars(row).items()} for row in sorted_rows(table)]
    return json.dumps(rows, indent=1, allow_nan=False)


def _columns(rows: Sequence[Row], several: bool) -> list[_Column]:
    """Every column that a terminal shows, in order, with how dispensable it is."""
    columns = [
        _Column(column.title or name, column.rank, "left" if is_words(name) else "right", [r.cell(name) for r in rows])
        for name, column in COLUMNS.items() if column.rank is not None
    ]  # fmt: skip
    if several:
        points = [f"{row.threads}/{row.batch}" if row.threads else "" for row in rows]
        columns.insert(1, _Column("thr/b", 0, "right", points))
    return columns


def print_columns(as_json: bool) -> None:
    """`qray columns`: the legend of results.parquet."""
    if as_json:
        print(json.dumps({name: {"meaning": c.meaning, "unit": c.unit} for name, c in COLUMNS.items()}, indent=1))
        return
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    for heading in ("column", "unit", "meaning"):
        grid.add_column(heading, no_wrap=heading != "meaning")
    for name, column in COLUMNS.items():
        grid.add_row(name, column.unit or "", column.meaning)
    results_console().print(grid)


def render(table: pa.Table, width: int) -> Table:
    """The variants as a rich table of at most `width` columns: what does not fit is left to results.parquet."""
    rows = [row for row in sorted_rows(table) if row.stage != "trial" and row.status == "ok"]
    columns = _columns(rows, several=_several_points(rows))
    while sum(column.width + GAP for column in columns) - GAP > width and any(column.rank for column in columns):
        columns.remove(max(columns, key=lambda column: column.rank))
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    for column in columns:
        # Where the last columns do not fit either, names give way, not figures.
        least = None if column.title == "variant" else column.width
        grid.add_column(column.title, justify=column.justify, no_wrap=True, min_width=least)
    for row, *cells in zip(rows, *(column.cells for column in columns), strict=True):
        styles = {"verdict": "red" if row.guardrails else VERDICT_STYLE.get(row.verdict or "")}
        if row.stage != "variant":
            styles["variant"] = "dim"
        elif row.beats_baseline is False:
            styles["MAE"] = "red"
        grid.add_row(*(Text(c, style=styles.get(k.title) or "") for c, k in zip(cells, columns, strict=True)))
    return grid


def _several_points(rows: Sequence[Row]) -> bool:
    return len({(row.threads, row.batch) for row in rows if row.threads is not None}) > 1


def results_console() -> Console:
    """Standard output; a file or pipe, which has no width, gets every column."""
    console = open_console()
    return console if console.is_terminal else open_console(width=PIPE_WIDTH, soft_wrap=True)


def print_results(table: pa.Table, console: Console) -> None:
    """The variants, what is missing and why, the sweep, and in red a baseline that was not beaten."""
    console.print(render(table, console.width))
    rows = sorted_rows(table)
    ok = next((row for row in rows if row.stage == "variant" and row.mae is not None), None)
    if ok is not None:
        points = "; thr/b: threads and batch" if _several_points(rows) else ""
        hosts = dict.fromkeys(row.host for row in rows if row.latency_p50_ms is not None)
        latency = f"; latency per call on {' and '.join(map(str, hosts))}{points}" if hosts else ""
        console.print(
            f"MAE on {ok.split}, {ok.n_clips} clips; margin {ok.margin:g}{latency}",
            style="dim", highlight=False, markup=False,
        )  # fmt: skip
    seen = set()
    for row in rows:
        line = f"{row.variant}: {row.reason}"
        if row.stage == "variant" and row.reason and line not in seen:
            seen.add(line)
            style = "red" if row.status == "failed" or row.beats_baseline is False else "yellow"
            word = f"{row.status}: " if row.status != "ok" else ""
            console.print(f"{row.variant}: {word}{row.reason}", style=style, highlight=False, markup=False)
    _print_what_is_not_to_be_shipped(rows, console)
    _print_what_would_settle(rows, console)
    _print_what_does_not_pay(rows, console)
    trials = [row for row in rows if row.stage == "trial"]
    if trials:
        console.print(f"\nQAT sweep, {len(trials)} trials by VAL MAE:", highlight=False)
        for row in trials:
            settings = json.loads(row.settings or "{}")
            words = ", ".join(f"{key} {value}" for key, value in settings.items() if value not in ([], None))
            tail = f" ({row.reason})" if row.reason else ""
            console.print(f"  {number(row.mae, 3)}  {row.variant}: {words}{tail}", style="dim", highlight=False,
                          markup=False)  # fmt: skip


def _print_what_is_not_to_be_shipped(rows: Sequence[Row], console: Console) -> None:
    """The variants with a broken guardrail, and which."""
    lines = [f"! {row.variant}: not to be shipped: {row.guardrails}" for row in rows if row.guardrails]
    for line in dict.fromkeys(lines):
        console.print(line, style="red", highlight=False, markup=False)


def _print_what_would_settle(rows: Sequence[Row], console: Console) -> None:
    """The variants without a clear verdict, and how many clips would give one."""
    lines = []
    for row in rows:
        if row.verdict == "inconclusive":
            clips = row.clips_to_settle
            needed = f"about {clips:,} clips would settle it" if clips else "no number of clips would settle it"
            lines.append(f"{row.variant}: inconclusive on {row.n_clips:,} clips; {needed}")
    # A variant measured at several points has a row for each.
    for line in dict.fromkeys(lines):
        console.print(line, style="yellow", highlight=False, markup=False)


def _print_what_does_not_pay(rows: Sequence[Row], console: Console) -> None:
    """The variants that are not known to be faster than FP32 on its fastest engine."""
    several = _several_points(rows)
    for row in rows:
        sentence = row_sentence(row) if row.stage == "variant" and not row.pays else None
        if sentence:
            point = f" at {row.threads} threads, batch {row.batch}" if several else ""
            console.print(f"{row.variant}{point}: {sentence}", style="yellow", highlight=False, markup=False)
