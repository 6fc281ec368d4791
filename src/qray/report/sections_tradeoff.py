"""Parts of the report on the choice itself: the table, the guardrails, the Pareto front, where the speed comes from."""

from __future__ import annotations

from collections.abc import Sequence

from qray.answers.pareto import Front, pareto_front
from qray.answers.pick import Choice
from qray.errors import QrayError
from qray.judge.costs import costs_of
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.guardrails import Guardrail
from qray.judge.ratio import REDUCED
from qray.judge.row import COLUMNS, Row, is_words
from qray.judge.statistics import Estimate
from qray.report.headline import how_to_read, verdict_key
from qray.report.plots_tradeoff import costs_plot, forest_plot, pareto_plot, speed_plot
from qray.words.document import Block, Bullets, Cell, Fold, Gallery, Grid, Paragraph, Section, Tone, figures_grid
from qray.words.figures import NOT_MEASURED, capital, cell, estimate, listed, number, percent, spread
from qray.words.phrases import costs_words, remarks, tone_of, verdict_word
from qray.words.show import legend, several_points

GUARDRAILS = {
    "worst_class": "worst class (95 %)", "class_shift": "shift of a class", "local_move": "move in one place",
    "moved_share": "clips moved", "tail": "tail of moves", "tied_low": "tied lowest", "tied_high": "tied highest",
    "distinct_share": "distinct",
}  # fmt: skip


def table_section(evidence: Evidence, choice: Choice | None) -> Section:
    """Every variant that finished, and what must be known of each."""
    picked = choice.picked.name if choice is not None and choice.picked is not None else None
    several = several_points(row for variant in evidence.variants for row in variant.rows)
    shown = {name: column.title or name for name, column in COLUMNS.items() if column.report}
    header = list(shown.values())
    if several:
        header.insert(1, "threads/batch")
    told = [(variant, row) for variant in (*evidence.variants, evidence.baseline) for row in variant.rows]
    rows = tuple(_row(variant, row, list(shown), several) for variant, row in told)
    strong = frozenset(at for at, (variant, _) in enumerate(told) if variant.name == picked)
    numeric = frozenset(header.index(title) for name, title in shown.items() if not is_words(name))
    grid = Grid(tuple(header), rows, "All variants", numeric, strong)
    said = tuple(text for variant in evidence.variants for text in remarks(variant))
    reading = Fold("How to read this", (Bullets(tuple(how_to_read(evidence))), legend()))
    remarked = [Bullets(said)] if said else []
    return Section("table", "The table", (grid, *remarked, Paragraph(verdict_key(evidence), "dim"), reading))


def _row(variant: VariantEvidence, row: Row, shown: Sequence[str], several: bool) -> tuple[Cell, ...]:
    cells = []
    for name in shown:
        value = getattr(row, name)
        tone: Tone = "bad" if name == "mae" and row.beats_baseline is False else ""
        order = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        cells.append(Cell(cell(row, name), tone, order))
    cells[shown.index("verdict")] = Cell(verdict_word(variant), tone_of(variant))
    if several:
        cells.insert(1, Cell(f"{row.threads}/{row.batch}" if row.threads else NOT_MEASURED))
    return tuple(cells)


def guardrails_section(evidence: Evidence) -> Section | None:
    """Every guardrail of every variant that has a verdict, the broken ones in words."""
    judged = [(v.name, v.comparison.guardrails) for v in evidence.variants if v.comparison and v.comparison.guardrails]
    if not judged:
        return None
    header = ("variant", *(GUARDRAILS[one.name] for one in judged[0][1]))
    rows = ((Cell(name), *map(_guardrail_cell, guardrails)) for name, guardrails in judged)
    limits = ", ".join(
        f"{GUARDRAILS[one.name].removesuffix(' (95 %)')} {_guardrail_figure(one, one.limit)}" for one in judged[0][1]
    )  # fmt: skip
    words = (
        f"A variant that breaks one is not to be shipped, whatever its mean says. Limits, from the study: {limits}. "
        "Words: ✗ broken, ? not settled by these clips."
    )
    blocks = (Paragraph(words), figures_grid(header, rows, "Guardrails"))
    return Section("guardrails", "Guardrails beside the mean", blocks)


def _guardrail_figure(guardrail: Guardrail, value: float | None) -> str:
    if guardrail.name in ("moved_share", "distinct_share"):
        return percent(value, 1)
    return number(value, 0) if guardrail.name.startswith("tied") else number(value)


def _guardrail_cell(guardrail: Guardrail) -> Cell:
    text = _guardrail_figure(guardrail, guardrail.value)
    if guardrail.name == "worst_class":
        text = f"{text} {spread(guardrail.low, guardrail.high, sign=True)}".rstrip()
    marks: dict[bool | None, tuple[str, Tone]] = {True: ("", ""), False: (" ✗", "bad"), None: (" ?", "dim")}
    mark, tone = marks[guardrail.ok]
    return Cell(f"{text}{mark}", tone, guardrail.value)


def tradeoff_section(evidence: Evidence, choice: Choice | None) -> Section:
    """The Pareto front, every difference with its interval, and why each variant is where it is."""
    margin, target = evidence.study.verdict.margin, evidence.study.data.target_column
    picked = choice.picked.name if choice is not None and choice.picked is not None else None
    front: Front | None = None
    try:
        front = pareto_front(evidence)
    except QrayError:
        front = None
    drawn = [pareto_plot(front, margin, picked, target) if front is not None else None,
             forest_plot(evidence.variants, margin)]  # fmt: skip
    plots = tuple(plot for plot in drawn if plot is not None)
    blocks: list[Block] = [Gallery(plots, wide=True)] if plots else []
    if drawn[0] is None:
        blocks.append(Paragraph("There is no Pareto plot: fewer than two variants have both a latency and a difference "
                                "to FP32."))  # fmt: skip
    if front is not None:
        blocks += [Paragraph(note, "unsure") for note in front.notes if note not in evidence.notes]
        said = tuple(f"{place.name}: {place.why}" for place in front.places)
        if said:
            blocks.append(Fold("Why each variant is on or off the front", (Bullets(said),)))
    return Section("front", "Accuracy against latency", tuple(blocks))


def speed_section(evidence: Evidence) -> Section:
    """Speed-up as engine times precision, what does not pay, and what else a clip costs."""
    timed = [v for v in evidence.variants if v.speed is not None and v.speed.total is not None]
    costs = costs_of(evidence.costs) if evidence.costs is not None else None
    drawn = (speed_plot(evidence.variants), costs_plot(costs) if costs is not None else None)
    plots = tuple(plot for plot in drawn if plot is not None)
    blocks: list[Block] = [Gallery(plots, wide=True)] if plots else [
        Paragraph("Latency was not measured in interleaved blocks, so no speed-up can be given.")]  # fmt: skip
    if said := _who_pays(timed):
        blocks.append(Bullets(said))
    if costs is not None:
        most = f"; however fast the network becomes, the whole is at most {number(costs.limit)}x as fast"
        blocks.append(Paragraph(f"{capital(costs_words(costs))}{most}."))
    else:
        blocks.append(Paragraph("What decoding, preprocessing, backbone and head cost apart was not measured.", "dim"))
    if timed:
        header = ("variant", "speed-up (95 %)", "engine", "precision", "fastest FP32", "against it (95 %)")
        rows = tuple(_speed_row(v) for v in timed)
        blocks.append(Fold("Figures", (Grid(header, rows, "Speed-up by cause", frozenset({1, 2, 3, 5})),)))
    return Section("speed", "Where the speed comes from", tuple(blocks))


def _who_pays(timed: Sequence[VariantEvidence]) -> tuple[str, ...]:
    """Variants of fewer bits by whether they beat the fastest FP32 engine."""
    words = {
        True: "Faster than FP32 on its fastest engine",
        False: "Fewer bits do not pay here, slower than FP32 on its fastest engine",
        None: "Not settled against FP32 on its fastest engine",
    }
    asked = [v for v in timed if v.outcome.method in REDUCED]
    found = {word: [v.name for v in asked if v.speed and v.speed.pays is pays] for pays, word in words.items()}
    return tuple(f"{word}: {listed(names)}." for word, names in found.items() if names)


def _speed_row(variant: VariantEvidence) -> tuple[Cell, ...]:
    speed = variant.speed
    assert speed is not None

    def of(found: Estimate | None) -> Cell:
        return Cell(NOT_MEASURED) if found is None else estimate(*found.parts)

    return (Cell(variant.name), of(speed.total), of(speed.engine), of(speed.precision),
            Cell(speed.best_fp32 or NOT_MEASURED), of(speed.against_best))  # fmt: skip
