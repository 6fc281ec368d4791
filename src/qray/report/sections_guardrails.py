"""The part of the report on what must hold beside the mean."""

from __future__ import annotations

from qray.judge.evidence import Evidence
from qray.judge.guardrails import Guardrail
from qray.words.document import Cell, Grid, Paragraph, Section, Tone
from qray.words.figures import number, percent, spread

TITLES = {
    "worst_class": "worst class (95 %)", "class_shift": "shift of a class", "local_move": "move in one place",
    "moved_share": "clips moved", "tail": "tail of moves", "tied_low": "tied lowest", "tied_high": "tied highest",
    "distinct_share": "distinct",
}  # fmt: skip


def guardrails_section(evidence: Evidence) -> Section | None:
    """Every guardrail of every variant that has a verdict, the broken ones in words."""
    judged = [(v.name, v.comparison.guardrails) for v in evidence.variants if v.comparison and v.comparison.guardrails]
    if not judged:
        return None
    rows = tuple((Cell(name), *(_cell(one) for one in guardrails)) for name, guardrails in judged)
    header = ("variant", *(TITLES[one.name] for one in judged[0][1]))
    limits = ", ".join(
        f"{TITLES[one.name].removesuffix(' (95 %)')} {_number(one, one.limit)}" for one in judged[0][1]
    )  # fmt: skip
    words = (
        f"A variant that breaks one is not to be shipped, whatever its mean says. Limits, from the study: {limits}. "
        "Words: ✗ broken, ? not settled by these clips."
    )
    grid = Grid(header, rows, "Guardrails", frozenset(range(1, len(header))))
    return Section("guardrails", "Guardrails beside the mean", (Paragraph(words), grid))


def _number(guardrail: Guardrail, value: float | None) -> str:
    if guardrail.name in ("moved_share", "distinct_share"):
        return percent(value, 1)
    return number(value, 0) if guardrail.name.startswith("tied") else number(value)


def _cell(guardrail: Guardrail) -> Cell:
    text = _number(guardrail, guardrail.value)
    if guardrail.name == "worst_class":
        text = f"{text} {spread(guardrail.low, guardrail.high, sign=True)}".strip()
    mark = {True: "", False: " ✗", None: " ?"}[guardrail.ok]
    tones: dict[bool | None, Tone] = {True: "", False: "bad", None: "dim"}
    return Cell(f"{text}{mark}", tones[guardrail.ok], guardrail.value)
