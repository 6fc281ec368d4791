"""Variants over several seeds, in a terminal and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qray.answers.seeds import OverSeeds, SeedEvidence
from qray.judge.row import BROKEN
from qray.words.figures import NOT_MEASURED
from qray.words.show import VERDICT_STYLE


def seeds_to_json(found: SeedEvidence) -> str:
    """Everything, as one JSON object; null for what there is none of."""
    content = asdict(found) | {"outs": [str(out) for out in found.outs]}
    return json.dumps(content, indent=1, allow_nan=False)


def _with_interval(value: float | None, low: float | None, high: float | None, form: str) -> str:
    if value is None:
        return NOT_MEASURED
    bounds = "" if low is None or high is None else f" ({low:{form}}, {high:{form}})"
    return f"{value:{form}}{bounds}"


def _cells(variant: OverSeeds) -> list[str]:
    return [
        variant.name,
        str(len(variant.seeds)),
        _with_interval(variant.mae, variant.mae_low, variant.mae_high, ".2f"),
        _with_interval(variant.delta, variant.delta_low, variant.delta_high, "+.2f"),
        NOT_MEASURED if variant.delta_sd is None else f"{variant.delta_sd:.2f}",
        f"{variant.verdict or NOT_MEASURED}{BROKEN if variant.broken else ''}",
    ]


def print_seeds(found: SeedEvidence, console: Console) -> None:
    """One line per variant, then what could not be concluded."""
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("variant", "seeds", "MAE (95 %)", "Δ to fp32 (95 %)", "SD of Δ over seeds", "verdict"):
        grid.add_column(title, justify="left" if title in ("variant", "verdict") else "right", no_wrap=True)
    for variant in found.variants:
        *cells, word = _cells(variant)
        style = "red" if variant.broken else VERDICT_STYLE.get(word, "")
        grid.add_row(*map(Text, cells), Text(word, style=style))
    console.print(grid)
    seeds = ", ".join(map(str, found.seeds))
    clips = " or ".join(str(n) for n in sorted({variant.n for variant in found.variants}))
    line = (
        f"{len(found.seeds)} seeds ({seeds}) on {clips} clips; margin {found.margin:g}; intervals over seeds and clips"
    )
    console.print(line, style="dim", highlight=False, markup=False)
    for variant in found.variants:
        for words in variant.broken:
            line = f"! {variant.name}: not to be shipped: {words}"
            console.print(line, style="red", highlight=False, markup=False)
    for note in found.notes:
        console.print(note, style="yellow", highlight=False, markup=False)
