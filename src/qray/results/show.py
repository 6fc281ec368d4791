"""The table in a terminal, and as JSON."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from qray.errors import QrayError
from qray.results.schema import RESULTS

NOT_MEASURED = "–"
VERDICT_STYLE = {"non-inferior": "green", "inferior": "red", "inconclusive": "yellow"}
#: Narrower terminals get the columns that decide, the others stay in results.parquet.
WIDE = 116


def read_results(out: Path) -> pa.Table:
    """Read OUT/results.parquet.

    Raises:
        QrayError: it is not there, is no Parquet file, or lacks columns that this version writes.
    """
    path = out / "results.parquet"
    if not path.is_file():
        raise QrayError(f"{path}: no such file; `qray run all --out {out}` makes it")
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise QrayError(f"{path}: not a readable Parquet file ({error}); `qray run table` writes it anew") from None
    missing = [name for name in RESULTS.names if name not in table.column_names]
    if missing:
        raise QrayError(
            f"{path}: written by another version, without {', '.join(missing[:5])}; `qray run table` writes it anew"
        )
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
        return value.isoformat() if isinstance(value, datetime) else value

    rows = [{name: plain(value) for name, value in row.items()} for row in sorted_rows(table)]
    return json.dumps(rows, indent=1, allow_nan=False)


def _number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return NOT_MEASURED if value is None else f"{value:.{digits}f}{unit}"


def _signed(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:+.2f}"


def _interval(row: dict[str, Any]) -> str:
    if row["delta_mae"] is None or row["verdict"] is None:
        return NOT_MEASURED
    return f"{_signed(row['delta_mae'])} ({_signed(row['delta_low'])}, {_signed(row['delta_high'])})"


def _size(value: int | None) -> str:
    return NOT_MEASURED if value is None else f"{value / 1e6:.2f}"


def _verdict(row: dict[str, Any]) -> str:
    word = row["verdict"]
    return f"[{VERDICT_STYLE[word]}]{word}[/]" if word else NOT_MEASURED


def render(table: pa.Table, width: int) -> Table:
    """The variants as a rich table that fits `width` columns."""
    wide = width >= WIDE
    rows = [row for row in sorted_rows(table) if row["stage"] != "trial" and row["status"] == "ok"]
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    grid.add_column("variant", no_wrap=True)
    columns = ["MAE", "Δ to fp32 (95 %)", "verdict", "MB"]
    columns += ["weights MB", "INT8"] if wide else []
    columns += ["p50 ms", "speed-up"]
    columns += ["engine × precision", "RSS MB"] if wide else []
    several = len({(row["threads"], row["batch"]) for row in rows if row["threads"] is not None}) > 1
    if several:
        columns.insert(0, "thr/batch")
    for column in columns:
        grid.add_column(column, justify="left" if column == "verdict" else "right", no_wrap=True)
    for row in rows:
        cells = [_number(row["mae"]), _interval(row), _verdict(row), _size(row["size_bytes"])]
        if wide:
            share = row["int8_mac_share"]
            cells += [_size(row["weights_bytes"]), NOT_MEASURED if share is None else f"{share:.0%}"]
        cells += [_number(row["latency_p50_ms"], 2), _number(row["speedup"], 2, "x")]
        if wide:
            parts = (row["speedup_engine"], row["speedup_precision"])
            product = " × ".join(f"{part:.2f}" for part in parts) if None not in parts else NOT_MEASURED
            cells += [product, _number(row["peak_rss_mb"], 0)]
        if several:
            cells.insert(0, f"{row['threads']}/{row['batch']}" if row["threads"] else NOT_MEASURED)
        name = row["variant"] if row["stage"] == "variant" else f"[dim]{row['variant']}[/]"
        grid.add_row(name, *cells)
    return grid


def print_results(table: pa.Table, console: Console) -> None:
    """The variants, what is missing and why, the sweep, and in red a baseline that was not beaten."""
    console.print(render(table, console.width))
    rows = sorted_rows(table)
    ok = next((row for row in rows if row["stage"] == "variant" and row["mae"] is not None), None)
    if ok is not None:
        console.print(
            f"[dim]MAE on {ok['split']}, {ok['n_clips']} clips; margin {ok['margin']:g}; "
            f"latency per call on {ok['host']}[/]",
            highlight=False,
        )
    seen = set()
    for row in rows:
        line = f"{row['variant']}: {row['reason']}"
        if row["stage"] == "variant" and row["reason"] and line not in seen:
            seen.add(line)
            style = "red" if row["status"] == "failed" or row["beats_baseline"] is False else "yellow"
            word = f"{row['status']}: " if row["status"] != "ok" else ""
            console.print(f"{row['variant']}: {word}{row['reason']}", style=style, highlight=False, markup=False)
    trials = [row for row in rows if row["stage"] == "trial"]
    if trials:
        console.print(f"\nQAT sweep, {len(trials)} trials by VAL MAE:", highlight=False)
        for row in trials:
            settings = json.loads(row["settings"] or "{}")
            words = ", ".join(f"{key} {value}" for key, value in settings.items() if value not in ([], None))
            tail = f" ({row['reason']})" if row["reason"] else ""
            console.print(f"  {_number(row['mae'], 3)}  {row['variant']}: {words}{tail}", style="dim", highlight=False)
