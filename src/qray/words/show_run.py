"""What is shown beside the table of a run: the most sensitive layers, what a clip costs, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qray.judge.costs import costs_of
from qray.judge.sensitivity import by_harm
from qray.judge.timing import PARALLEL_PHASE, Timing, UnitTime
from qray.words.document import Cell, Grid
from qray.words.figures import in_table, number, percent
from qray.words.phrases import costs_words
from qray.words.terminal import say, table_of

#: What a record of the analysis has, if it is whole.
SENSITIVITY = frozenset(("layers", "all_sqnr_db", "sqnr_of", "fp32_mae", "n_clips", "split", "weight_bits"))
#: Layers shown in a terminal; the record has them all.
SHOWN_LAYERS = 10


def print_sensitivity(record: Mapping[str, Any] | None, console: Console) -> None:
    """The most sensitive layers, where they were measured."""
    if record is not None and record.keys() >= SENSITIVITY:
        console.print()
        console.print(render_sensitivity(record))


def print_times(costs: Mapping[str, Any] | None, timing: Timing | None, console: Console) -> None:
    """What a clip costs, and where the time of the run went."""
    found = costs_of(costs) if costs is not None else None
    if found is not None:
        say(console, costs_words(found))
    if timing is not None:
        console.print()
        console.print(render_timing(timing))


def render_sensitivity(record: Mapping[str, Any], shown: int = SHOWN_LAYERS) -> Table:
    """The most sensitive layers as a table."""
    layers = by_harm(record)
    total = sum(layer["macs"] for layer in layers)
    rows = []
    for layer in layers[:shown]:
        alone, rest = layer["alone"], layer["all_but"]
        cells = (
            layer["layer"], number(alone["sqnr_db"], 1), _delta(alone), number(rest["sqnr_db"], 1), _delta(rest),
            percent(layer["range"]["clipped_share"], 3), percent(layer["macs"] / total if total else None),
        )  # fmt: skip
        rows.append(tuple(map(Cell, cells)))
    header = ("layer", "alone dB", "Δ MAE alone (95 %)", "all but dB", "Δ MAE all but (95 %)", "clipped", "MACs")
    grid = Grid(header, tuple(rows), "Most sensitive layers", frozenset(range(1, len(header))))
    return table_of(grid, title=grid.label, caption=_caption(record, shown))


def _delta(state: Mapping[str, Any]) -> str:
    return in_table(state["delta_mae"], state["delta_low"], state["delta_high"], sign=True)


def _caption(record: Mapping[str, Any], shown: int) -> str:
    left = len(record["layers"]) - shown
    together = f"all quantized: {number(record['all_sqnr_db'], 1)} dB"
    if record.get("all_delta_mae") is not None:
        together += f", Δ MAE {number(record['all_delta_mae'], sign=True)}"
    return (
        f"SQNR of the {record['sqnr_of']} and MAE against FP32 ({number(record['fp32_mae'])}), {record['n_clips']} "
        f"{record['split']} clips, {record['weight_bits']}-bit weights; {together}"
        + (f"; {left} more layers in units/" if left > 0 else "")
    )


def render_timing(timing: Timing) -> Table:
    """Phases with their share of the run, and under each the units that ran in it, by kind."""
    rows: list[tuple[Cell, ...]] = []
    for phase, seconds in timing.phases.items():
        if seconds < 0.05 and not timing.kinds(phase):
            continue
        overlap = timing.overlap() if phase == PARALLEL_PHASE else None
        note = f"{overlap:.1f} units of work at once" if overlap is not None else ""
        rows.append((Cell(phase), Cell(f"{seconds:.1f}"), Cell(_share(seconds, timing.total)), Cell(note)))
        rows += [_kind_row(kind, timing.of_kind(kind)) for kind in timing.kinds(phase)]
    rows.append((Cell("all"), Cell(f"{timing.total:.1f}"), Cell(_share(timing.total, timing.total)), Cell("")))
    grid = Grid(("phase", "seconds", "share", ""), tuple(rows), "Where the time went", frozenset({1, 2}))
    began = datetime.fromtimestamp(timing.started, UTC)
    return table_of(grid, title=Text(f"{grid.label} (run of {began:%Y-%m-%d %H:%M} UTC)"))


def _share(seconds: float, total: float) -> str:
    return f"{seconds / total:.0%}" if total > 0 else ""


def _kind_row(kind: str, units: list[UnitTime]) -> tuple[Cell, ...]:
    longest = units[0]
    note = f"{len(units)} units" if len(units) > 1 else ""
    if len(units) > 1 and longest.label:
        note += f", the longest: {longest.label.removeprefix(f'{kind} ')} {longest.seconds:.1f}"
    seconds = f"{sum(unit.seconds for unit in units):.1f}"
    return tuple(Cell(text, "dim") for text in (f"  {kind}", seconds, "", note))
