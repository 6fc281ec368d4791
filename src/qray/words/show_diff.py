"""The difference of two runs in a terminal, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qray.answers.changes import Change
from qray.answers.diff import RunDiff, VariantDiff
from qray.words.figures import NOT_MEASURED


def print_diff(diff: RunDiff, console: Console) -> None:
    """What changed around the runs, the variants side by side, and the regressions last, where they are read."""

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False)

    say(f"A: {diff.a}\nB: {diff.b}")
    _print_changes("Study", diff.study, console)
    _print_changes("Versions", diff.versions, console)
    _print_changes("Host", diff.host, console)
    say("")
    console.print(_grid(diff.variants))
    for variant in diff.variants:
        for where, words in _missing(variant):
            say(f"{variant.name} in {where}: {words}", "yellow")
    for note in diff.notes:
        say(f"Note: {note}", "dim")
    say("")
    for regression in diff.regressions:
        say(f"Regression: {regression}", "red")
    for unchecked in diff.unchecked:
        say(f"Not compared: {unchecked}", "yellow")
    if not diff.regressions:
        within = " in what could be compared" if diff.unchecked else ""
        say(f"No regression{within} (an MAE may grow by {diff.tolerance:g}).", "yellow" if within else "green")


def _missing(variant: VariantDiff) -> list[tuple[str, str]]:
    """Where the variant has no result, and why; once where it is the same in both runs."""
    found = [
        (word, f"{side.status}: {side.reason or 'no reason was recorded'}")
        for word, side in (("A", variant.a), ("B", variant.b))
        if side is not None and side.status != "ok"
    ]
    return [("both", found[0][1])] if len(found) == 2 and found[0][1] == found[1][1] else found


def _print_changes(title: str, changes: Sequence[Change], console: Console) -> None:
    console.print(f"\n{title}: {'unchanged' if not changes else ''}".rstrip(), style="bold", highlight=False)
    for change in changes:
        if change.key == "cpu_flags":
            console.print(f"  cpu_flags: {_flags(change)}", markup=False, highlight=False)
            continue
        a, b = ("not set" if value is None else json.dumps(value) for value in (change.a, change.b))
        console.print(f"  {change.key}: {a} -> {b}", markup=False, highlight=False)


def _flags(change: Change) -> str:
    a, b = (set(str(value or "").split()) for value in (change.a, change.b))
    return " ".join([*(f"-{flag}" for flag in sorted(a - b)), *(f"+{flag}" for flag in sorted(b - a))])


def _two(a: Any, b: Any) -> str:
    """A value in both runs, once where it is the same."""
    return str(a) if a == b else f"{a} -> {b}"


def _number(value: float | None, digits: int = 2) -> str:
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def _cells(variant: VariantDiff) -> list[str]:
    a, b = variant.a, variant.b
    status = _two(a.status if a else "not in A", b.status if b else "not in B")
    figures = [
        (side.mae, verdict, None if side.size_bytes is None else side.size_bytes / 1e6, side.latency_ms)
        if side else (None, None, None, None)
        for side, verdict in ((a, variant.verdict_a), (b, variant.verdict_b))
    ]  # fmt: skip
    (mae_a, word_a, size_a, ms_a), (mae_b, word_b, size_b, ms_b) = figures
    change = NOT_MEASURED
    if variant.mae is not None:
        change = f"{variant.mae.value:+.2f}"
        if variant.mae.low is not None and variant.mae.high is not None:
            change += f" ({variant.mae.low:+.2f}, {variant.mae.high:+.2f})"
        change += "" if variant.paired else " unpaired"
    latency = _two(_number(ms_a), _number(ms_b))
    if variant.latency is not None:
        latency += f" ({variant.latency:.2f}x)"
    return [
        variant.name, status, _two(_number(mae_a), _number(mae_b)), change,
        _two(word_a or NOT_MEASURED, word_b or NOT_MEASURED), _two(_number(size_a), _number(size_b)), latency,
    ]  # fmt: skip


def _grid(variants: Sequence[VariantDiff]) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("variant", "status", "MAE", "B - A (95 %)", "verdict", "MB", "p50 ms"):
        grid.add_column(title, overflow="fold")
    for variant in variants:
        style = "red" if variant.regressions else "yellow" if variant.flipped else ""
        grid.add_row(*(Text(cell, style=style) for cell in _cells(variant)))
    return grid


def diff_json(diff: RunDiff) -> str:
    """Everything as JSON; null for what is not known."""
    return json.dumps(asdict(diff), indent=1, allow_nan=False, default=str)
