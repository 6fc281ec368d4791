"""The table of a report, and the guardrails beside it."""

from __future__ import annotations

from collections.abc import Sequence

from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.guardrails import Guardrail
from qray.judge.row import COLUMNS, Row, is_words
from qray.report.headline import how_to_read, verdict_key
from qray.words.document import Block, Bullets, Cell, Fold, Grid, Paragraph, Tone, figures_grid
from qray.words.figures import NOT_MEASURED, cell, number, percent, spread
from qray.words.phrases import remarks, tone_of, verdict_word
from qray.words.show import at_words, legend, several_points

GUARDRAILS = {
    "worst_class": "worst class (95 %)", "class_shift": "shift of a class", "local_move": "move in one place",
    "moved_share": "clips moved", "tail": "tail of moves", "tied_low": "tied lowest", "tied_high": "tied highest",
    "distinct_share": "distinct",
}  # fmt: skip
#: How a guardrail's cell ends and looks, by whether it holds.
MARKS: dict[bool | None, tuple[str, Tone]] = {True: ("", ""), False: (" ✗", "bad"), None: (" ?", "dim")}


def table(evidence: Evidence, picked: str | None) -> list[Block]:
    """Every variant that finished, and what must be known of each; `picked` stands out."""
    several = several_points(row for variant in evidence.variants for row in variant.rows)
    shown = {name: column.title or name for name, column in COLUMNS.items() if column.report}
    header = list(shown.values())
    if several:
        header.insert(1, "threads/batch")
    told = [(variant, row) for variant in (*evidence.variants, evidence.baseline) for row in variant.rows]
    rows = tuple(_row(variant, row, list(shown), several) for variant, row in told)
    strong = frozenset(at for at, (variant, _) in enumerate(told) if variant.name == picked)
    numeric = frozenset(header.index(title) for name, title in shown.items() if not is_words(name))
    said = tuple(text for variant in evidence.variants for text in remarks(variant))
    return [
        Grid(tuple(header), rows, "All variants", numeric, strong),
        *([Bullets(said)] if said else []),
        Paragraph(verdict_key(evidence), "dim"),
        Fold("How to read this", (Bullets(tuple(how_to_read(evidence))), legend())),
    ]


def _row(variant: VariantEvidence, row: Row, shown: Sequence[str], several: bool) -> tuple[Cell, ...]:
    cells = []
    for name in shown:
        value = getattr(row, name)
        tone: Tone = "bad" if name == "mae" and row.beats_baseline is False else ""
        order = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        cells.append(Cell(cell(row, name), tone, order))
    cells[shown.index("verdict")] = Cell(verdict_word(variant), tone_of(variant))
    if several:
        cells.insert(1, Cell(at_words(row) or NOT_MEASURED))
    return tuple(cells)


def guardrails(evidence: Evidence) -> list[Block]:
    """Every guardrail of every variant that has a verdict, the broken ones in words."""
    judged = [(v.name, v.comparison.guardrails) for v in evidence.variants if v.comparison and v.comparison.guardrails]
    if not judged:
        return []
    titles = [GUARDRAILS[one.name] for one in judged[0][1]]
    limits = [f"{title.removesuffix(' (95 %)')} {_limited(one, one.limit)}"
              for title, one in zip(titles, judged[0][1], strict=True)]  # fmt: skip
    words = (
        "A variant that breaks one is not to be shipped, whatever its mean says. Limits, from the study: "
        f"{', '.join(limits)}. Words: ✗ broken, ? not settled by these clips."
    )
    rows = ((Cell(name), *map(_guardrail, found)) for name, found in judged)
    return [Paragraph(words), figures_grid(("variant", *titles), rows, "Guardrails")]


def _limited(guardrail: Guardrail, value: float | None) -> str:
    if guardrail.name in ("moved_share", "distinct_share"):
        return percent(value, 1)
    return number(value, 0 if guardrail.name.startswith("tied") else 2)


def _guardrail(of: Guardrail) -> Cell:
    text, (mark, tone) = _limited(of, of.value), MARKS[of.ok]
    if of.name == "worst_class":
        text = f"{text} {spread(of.low, of.high, sign=True)}".rstrip()
    return Cell(f"{text}{mark}", tone, of.value)
