"""The table in a terminal, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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
from qray.results.index import FILE
from qray.results.schema import RESULTS
from qray.results.speed import row_sentence
from qray.terminal import open_console

NOT_MEASURED = "–"
#: Beside a verdict: a guardrail is broken, and the line below the table says which.
BROKEN = " !"
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


def _order(row: dict[str, Any]) -> tuple[int, float, str]:
    reference = (row["method"], row["engine"]) == ("fp32", "eager")
    group = 0 if reference else {"variant": 1, "baseline": 2}.get(row["stage"], 3)
    if row["status"] != "ok":
        group = max(group, 2)
    key = row["mae"] if row["stage"] == "trial" else row["latency_p50_ms"]
    return group, key if key is not None else float("inf"), row["variant"]


def sorted_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as dictionaries: FP32 eager, then by latency, the baseline, trials by VAL MAE."""
    return sorted(table.to_pylist(), key=_order)


def to_json(table: pa.Table) -> str:
    """All rows and columns as a JSON list; null for what was not measured, times in ISO 8601."""

    def plain(value: Any) -> Any:
        return value.replace(tzinfo=UTC).isoformat() if isinstance(value, datetime) else value

    rows = [{name: plain(value) for name, value in row.items()} for row in sorted_rows(table)]
    return json.dumps(rows, indent=1, allow_nan=False)


def _number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return NOT_MEASURED if value is None else f"{value:.{digits}f}{unit}"


def _percent(share: float | None) -> str:
    return NOT_MEASURED if share is None else f"{share:.0%}"


def _signed(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:+.2f}"


def _interval(row: dict[str, Any]) -> str:
    if row["delta_mae"] is None or row["verdict"] is None:
        return NOT_MEASURED
    return f"{_signed(row['delta_mae'])} ({_signed(row['delta_low'])}, {_signed(row['delta_high'])})"


def _verdict(row: dict[str, Any]) -> str:
    return f"{row['verdict'] or NOT_MEASURED}{BROKEN if row['guardrails'] else ''}"


def _size(value: int | None) -> str:
    return NOT_MEASURED if value is None else f"{value / 1e6:.2f}"


def _columns(rows: Sequence[dict[str, Any]], several: bool) -> list[_Column]:
    """Every column, in order, with how dispensable it is: the highest rank goes first where width is short."""

    def column(title: str, rank: int, cell: Callable[[dict[str, Any]], str], justify: Justify = "right") -> _Column:
        return _Column(title, rank, justify, [cell(row) for row in rows])

    columns = [
        column("variant", 0, lambda row: row["variant"], "left"),
        column("MAE", 0, lambda row: _number(row["mae"])),
        column("Δ to fp32 (95 %)", 1, _interval),
        column("verdict", 0, _verdict, "left"),
        column("MB", 3, lambda row: _size(row["size_bytes"])),
        column("weights MB", 5, lambda row: _size(row["weights_bytes"])),
        column(
            "INT8", 4, lambda row: NOT_MEASURED if row["int8_mac_share"] is None else f"{row['int8_mac_share']:.0%}"
        ),
        column("p50 ms", 2, lambda row: _number(row["latency_p50_ms"])),
        column("speed-up", 0, lambda row: _number(row["speedup"], 2, "x")),
        column("engine × precision", 7, _parts),
        column("RSS MB", 6, lambda row: _number(row["peak_rss_mb"], 0)),
    ]
    if several:
        columns.insert(1, column("thr/b", 0, lambda row: f"{row['threads']}/{row['batch']}" if row["threads"] else ""))
    return columns


def _parts(row: dict[str, Any]) -> str:
    parts = (row["speedup_engine"], row["speedup_precision"])
    return " × ".join(f"{part:.2f}" for part in parts) if None not in parts else NOT_MEASURED


def render(table: pa.Table, width: int) -> Table:
    """The variants as a rich table of at most `width` columns: what does not fit is left to results.parquet."""
    rows = [row for row in sorted_rows(table) if row["stage"] != "trial" and row["status"] == "ok"]
    columns = _columns(rows, several=_several_points(rows))
    while sum(column.width + GAP for column in columns) - GAP > width and any(column.rank for column in columns):
        columns.remove(max(columns, key=lambda column: column.rank))
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    for column in columns:
        # Where the last columns do not fit either, names give way, not figures.
        least = None if column.title == "variant" else column.width
        grid.add_column(column.title, justify=column.justify, no_wrap=True, min_width=least)
    for row, *cells in zip(rows, *(column.cells for column in columns), strict=True):
        styles = {"verdict": "red" if row["guardrails"] else VERDICT_STYLE.get(row["verdict"] or "")}
        if row["stage"] != "variant":
            styles["variant"] = "dim"
        elif row["beats_baseline"] is False:
            styles["MAE"] = "red"
        grid.add_row(*(Text(c, style=styles.get(k.title) or "") for c, k in zip(cells, columns, strict=True)))
    return grid


def _several_points(rows: Sequence[dict[str, Any]]) -> bool:
    return len({(row["threads"], row["batch"]) for row in rows if row["threads"] is not None}) > 1


def results_console() -> Console:
    """Standard output; a file or pipe, which has no width, gets every column."""
    console = open_console()
    return console if console.is_terminal else open_console(width=PIPE_WIDTH, soft_wrap=True)


def print_results(table: pa.Table, console: Console) -> None:
    """The variants, what is missing and why, the sweep, and in red a baseline that was not beaten."""
    console.print(render(table, console.width))
    rows = sorted_rows(table)
    ok = next((row for row in rows if row["stage"] == "variant" and row["mae"] is not None), None)
    if ok is not None:
        points = "; thr/b: threads and batch" if _several_points(rows) else ""
        hosts = dict.fromkeys(row["host"] for row in rows if row["latency_p50_ms"] is not None)
        latency = f"; latency per call on {' and '.join(map(str, hosts))}{points}" if hosts else ""
        console.print(
            f"MAE on {ok['split']}, {ok['n_clips']} clips; margin {ok['margin']:g}{latency}",
            style="dim", highlight=False, markup=False,
        )  # fmt: skip
    seen = set()
    for row in rows:
        line = f"{row['variant']}: {row['reason']}"
        if row["stage"] == "variant" and row["reason"] and line not in seen:
            seen.add(line)
            style = "red" if row["status"] == "failed" or row["beats_baseline"] is False else "yellow"
            word = f"{row['status']}: " if row["status"] != "ok" else ""
            console.print(f"{row['variant']}: {word}{row['reason']}", style=style, highlight=False, markup=False)
    _print_what_is_not_to_be_shipped(rows, console)
    _print_what_would_settle(rows, console)
    _print_what_does_not_pay(rows, console)
    trials = [row for row in rows if row["stage"] == "trial"]
    if trials:
        console.print(f"\nQAT sweep, {len(trials)} trials by VAL MAE:", highlight=False)
        for row in trials:
            settings = json.loads(row["settings"] or "{}")
            words = ", ".join(f"{key} {value}" for key, value in settings.items() if value not in ([], None))
            tail = f" ({row['reason']})" if row["reason"] else ""
            console.print(f"  {_number(row['mae'], 3)}  {row['variant']}: {words}{tail}", style="dim", highlight=False,
                          markup=False)  # fmt: skip


def _print_what_is_not_to_be_shipped(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """The variants with a broken guardrail, and which."""
    lines = [f"! {row['variant']}: not to be shipped: {row['guardrails']}" for row in rows if row["guardrails"]]
    for line in dict.fromkeys(lines):
        console.print(line, style="red", highlight=False, markup=False)


def _print_what_would_settle(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """The variants without a clear verdict, and how many clips would give one."""
    lines = []
    for row in rows:
        if row["verdict"] == "inconclusive":
            clips = row["clips_to_settle"]
            needed = f"about {clips:,} clips would settle it" if clips else "no number of clips would settle it"
            lines.append(f"{row['variant']}: inconclusive on {row['n_clips']:,} clips; {needed}")
    # A variant measured at several points has a row for each.
    for line in dict.fromkeys(lines):
        console.print(line, style="yellow", highlight=False, markup=False)


def _print_what_does_not_pay(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """The variants that are not known to be faster than FP32 on its fastest engine."""
    several = _several_points(rows)
    for row in rows:
        sentence = row_sentence(row) if row["stage"] == "variant" and not row["pays"] else None
        if sentence:
            point = f" at {row['threads']} threads, batch {row['batch']}" if several else ""
            console.print(f"{row['variant']}{point}: {sentence}", style="yellow", highlight=False, markup=False)
