"""Parts of the report on the choice itself: the table, the Pareto front, and where the speed comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qray.answers.pareto import Front, pareto_front
from qray.answers.pick import Choice
from qray.errors import QrayError
from qray.judge.costs import costs_of
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.row import COLUMNS, Row, is_words
from qray.report.plots_tradeoff import costs_plot, forest_plot, pareto_plot, speed_plot
from qray.words.document import Block, Bullets, Cell, Fold, Gallery, Grid, Paragraph, Picture, Section, Tone
from qray.words.figures import listed, number, with_interval
from qray.words.verdicts import how_to_read, remarks, tone_of, verdict_key, verdict_words


def table_section(evidence: Evidence, choice: Choice | None) -> Section:
    """Every variant that finished, and what must be known of each."""
    picked = choice.picked.name if choice is not None and choice.picked is not None else None
    points = {row.point for variant in evidence.variants for row in variant.rows}
    several = len(points - {None}) > 1
    shown = {name: column for name, column in COLUMNS.items() if column.report}
    header = [column.title or name for name, column in shown.items()]
    if several:
        header.insert(1, "threads/batch")
    rows: list[tuple[Cell, ...]] = []
    strong: set[int] = set()
    for variant in (*evidence.variants, evidence.baseline):
        for row in variant.rows:
            if variant.name == picked:
                strong.add(len(rows))
            rows.append(_row(variant, row, tuple(shown), several))
    figures = frozenset(header.index(column.title or name) for name, column in shown.items() if not is_words(name))
    grid = Grid(tuple(header), tuple(rows), "All variants", figures, frozenset(strong))
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
        cells.append(Cell(row.cell(name), tone, order))
    cells[shown.index("verdict")] = Cell(verdict_words(variant), tone_of(variant))
    if several:
        cells.insert(1, Cell(f"{row.threads}/{row.batch}" if row.threads else "–"))
    return tuple(cells)


def legend() -> Grid:
    """What each column of results.parquet means."""
    rows = tuple((Cell(name), Cell(column.meaning), Cell(column.unit or "")) for name, column in COLUMNS.items())
    return Grid(("column", "meaning", "unit"), rows, "Columns of results.parquet")


def tradeoff_section(evidence: Evidence, choice: Choice | None) -> Section:
    """The Pareto front, every difference with its interval, and why each variant is where it is."""
    title = "Accuracy against latency"
    margin = evidence.study.verdict.margin
    picked = choice.picked.name if choice is not None and choice.picked is not None else None
    target = evidence.study.data.target_column
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
    return Section("front", title, tuple(blocks))


def speed_section(evidence: Evidence) -> Section:
    """Speed-up as engine times precision, what does not pay, and what else a clip costs."""
    timed = [v for v in evidence.variants if v.speed is not None and v.speed.total is not None]
    blocks: list[Block] = []
    plot: Picture | None = speed_plot(evidence.variants)
    costs = costs_of(evidence.costs) if evidence.costs is not None else None
    plots = tuple(p for p in (plot, costs_plot(costs) if costs is not None else None) if p is not None)
    if plots:
        blocks.append(Gallery(plots, wide=True))
    else:
        blocks.append(Paragraph("Latency was not measured in interleaved blocks, so no speed-up can be given."))
    said = _who_pays(timed)
    if said:
        blocks.append(Bullets(said))
    if costs is not None:
        most = f"; however fast the network becomes, the whole is at most {number(costs.limit)}x as fast"
        blocks.append(Paragraph(f"{costs.sentence[:1].upper()}{costs.sentence[1:]}{most}."))
    else:
        blocks.append(Paragraph("What decoding, preprocessing, backbone and head cost apart was not measured.", "dim"))
    if timed:
        rows = tuple(_speed_row(v) for v in timed)
        header = ("variant", "speed-up (95 %)", "engine", "precision", "fastest FP32", "against it (95 %)")
        blocks.append(Fold("Figures", (Grid(header, rows, "Speed-up by cause", frozenset({1, 2, 3, 5})),)))
    return Section("speed", "Where the speed comes from", tuple(blocks))


def _who_pays(timed: Sequence[VariantEvidence]) -> tuple[str, ...]:
    """Variants of fewer bits by whether they beat the fastest FP32 engine."""
    words = {
        True: "Faster than FP32 on its fastest engine",
        False: "Fewer bits do not pay here, slower than FP32 on its fastest engine",
        None: "Not settled against FP32 on its fastest engine",
    }
    found = []
    for pays, word in words.items():
        names = [v.name for v in timed if v.speed is not None and v.speed.sentence and v.speed.pays is pays]
        if names:
            found.append(f"{word}: {listed(names)}.")
    return tuple(found)


def _speed_row(variant: VariantEvidence) -> tuple[Cell, ...]:
    speed = variant.speed
    assert speed is not None

    def cell(found: Any) -> Cell:
        if found is None:
            return Cell("–")
        return Cell(with_interval(found.value, found.low, found.high), order=found.value)

    return (Cell(variant.name), cell(speed.total), cell(speed.engine), cell(speed.precision),
            Cell(speed.best_fp32 or "–"), cell(speed.against_best))  # fmt: skip
