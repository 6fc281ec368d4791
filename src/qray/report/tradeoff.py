"""What accuracy costs: the Pareto front, differences beside speed-ups, and where a clip's time goes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from qray.answers.pareto import Place, pareto_front
from qray.errors import QrayError
from qray.judge.comparison import Comparison
from qray.judge.costs import OUTSIDE, Costs, costs_of
from qray.judge.evidence import Evidence
from qray.judge.ratio import REDUCED, Speed
from qray.judge.statistics import Estimate
from qray.report.labels import Label, place_labels
from qray.report.marks import bar, mark, name_rows
from qray.report.theme import AMBER, BLUE, GREEN, GREY, INK, MUTED, RED, ROW_IN, TEAL, VIOLET, WASH, draw, gallery
from qray.words.document import Block, Bullets, Cell, Fold, Grid, Paragraph, Picture
from qray.words.figures import NOT_MEASURED, capital, estimate, fold, listed, number, signed
from qray.words.phrases import costs_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VERDICT_COLOUR = {"non-inferior": GREEN, "inferior": RED, "inconclusive": AMBER}
#: What is said of variants of fewer bits by whether they beat the fastest FP32 engine.
PAYS = {
    True: "Faster than FP32 on its fastest engine",
    False: "Fewer bits do not pay here, slower than FP32 on its fastest engine",
    None: "Not settled against FP32 on its fastest engine",
}


def tradeoff(evidence: Evidence, picked: str | None) -> list[Block]:
    """The Pareto front, every difference with its interval, and why each variant is where it is."""
    margin = evidence.study.verdict.margin
    places: Sequence[Place] = ()
    notes: Sequence[str] = ()
    try:
        front = pareto_front(evidence)
        places, notes = front.places, front.notes
    except QrayError:
        pass
    pareto = _pareto(places, margin, picked, evidence.study.data.target_column)
    compared = {v.name: v.comparison for v in evidence.variants if v.comparison is not None}
    blocks = gallery(pareto, _differences(compared, margin), wide=True)
    if pareto is None:
        blocks.append(Paragraph("There is no Pareto plot: fewer than two variants have both a latency and a difference "
                                "to FP32."))  # fmt: skip
    blocks += [Paragraph(note, "unsure") for note in notes if note not in evidence.notes]
    if places:
        said = tuple(f"{place.name}: {place.why}" for place in places)
        blocks.append(Fold("Why each variant is on or off the front", (Bullets(said),)))
    return blocks


def speed(evidence: Evidence) -> list[Block]:
    """Speed-up as engine times precision, what does not pay, and what else a clip costs."""
    timed = {v.name: v.speed for v in evidence.variants if v.speed is not None and v.speed.total is not None}
    costs = costs_of(evidence.costs) if evidence.costs is not None else None
    blocks = gallery(_speeds(timed) if timed else None, _costs(costs) if costs is not None else None, wide=True)
    if not blocks:
        blocks.append(Paragraph("Latency was not measured in interleaved blocks, so no speed-up can be given."))
    asked = [v for v in evidence.variants if v.name in timed and v.outcome.method in REDUCED]
    found = {words: [v.name for v in asked if timed[v.name].pays is pays] for pays, words in PAYS.items()}
    if asked:
        blocks.append(Bullets(tuple(f"{words}: {listed(names)}." for words, names in found.items() if names)))
    if costs is not None:
        most = f"; however fast the network becomes, the whole is at most {number(costs.limit)}x as fast"
        blocks.append(Paragraph(f"{capital(costs_words(costs))}{most}."))
    else:
        blocks.append(Paragraph("What decoding, preprocessing, backbone and head cost apart was not measured.", "dim"))
    if timed:
        header = ("variant", "speed-up (95 %)", "engine", "precision", "fastest FP32", "against it (95 %)")
        rows = tuple(
            (Cell(name), _cell(of.total), _cell(of.engine), _cell(of.precision), Cell(of.best_fp32 or NOT_MEASURED),
             _cell(of.against_best))
            for name, of in timed.items()
        )  # fmt: skip
        blocks.append(Fold("Figures", (Grid(header, rows, "Speed-up by cause", frozenset({1, 2, 3, 5})),)))
    return blocks


def _cell(found: Estimate | None) -> Cell:
    return Cell(NOT_MEASURED) if found is None else estimate(*found.parts)


def _pareto(places: Sequence[Place], margin: float, picked: str | None, target: str) -> Picture | None:
    """Latency against loss of accuracy with error bars; None where fewer than two variants can be placed."""
    placed = [(place, place.latency_ms, place.error) for place in places if place.latency_ms and place.error]
    if len(placed) < 2:
        return None
    order = sorted(placed, key=lambda p: (p[0].name != picked, p[0].on_front is not True, p[1].value))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="latency p50, ms (log scale)", ylabel=f"MAE against FP32, {target}")
        times = _figures(latency for _, latency, _ in placed)
        errors = [*_figures(error for *_, error in placed), 0.0]
        low, high = min(errors), max(*errors, margin * 1.15)
        air = 0.08 * (high - low or 1.0)
        _log_scale(axes)
        axes.set(xlim=(min(times) / 1.5, max(times) * 1.5), ylim=(low - air, high + air))
        axes.axhspan(margin, max(high + air, margin), color=WASH, linewidth=0, zorder=0)
        axes.axhline(margin, color=RED, linewidth=1, linestyle="--")
        axes.axhline(0, color=MUTED, linewidth=0.8)
        for place, x, y in reversed(order):
            best = place.name == picked
            colour = GREEN if best else BLUE if place.on_front else GREY
            mark(axes, y.value, None, x.low, x.high, colour)
            mark(axes, x.value, *y.parts, colour, "*" if best else "o", 12 if best else 5.5, upright=True,
                 markerfacecolor=colour if place.on_front else "none")  # fmt: skip
        place_labels(axes, [
            Label(x.value, y.value, place.name, INK if place.on_front or place.name == picked else MUTED,
                  place.name == picked, y.low, y.high)
            for place, x, y in order
        ])  # fmt: skip

    names = ", ".join(place.name for place, *_ in placed if place.on_front)
    alt = f"Latency against the difference of MAE to FP32, with 95 % intervals. On the front: {names or 'nothing'}."
    return draw("pareto", alt, paint, 3.9, caption=(
        "Filled: on the front. Hollow: dominated, which is said only where the intervals separate. "
        "The dashed line is the margin; above it is the loss that the study does not put up with."))  # fmt: skip


def _figures(estimates: Iterable[Estimate]) -> list[float]:
    """All figures and bounds that there are."""
    return [value for found in estimates for value in found.parts if value is not None]


def _log_scale(axes: Axes, unit: str = "", steps: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    import matplotlib.ticker as ticker

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def _differences(compared: Mapping[str, Comparison], margin: float) -> Picture | None:
    """Difference to FP32 with its interval, one row a variant, coloured by verdict; None where nothing was compared."""
    if not compared:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="MAE against FP32, 95 % interval")
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.axvline(margin, color=RED, linewidth=1, linestyle="--")
        for row, of in enumerate(compared.values()):
            mark(axes, row, of.delta, of.delta_low, of.delta_high, VERDICT_COLOUR.get(of.verdict or "", GREY), line=2)
        name_rows(axes, compared)

    said = "; ".join(f"{name} {signed(of.delta)}" for name, of in compared.items())
    return draw("difference", f"Difference of MAE to FP32 with its 95 % interval: {said}.", paint,
                0.7 + ROW_IN * len(compared), caption=(
        "Green: non-inferior. Amber: inconclusive. Red: inferior. Dashed: the margin."))  # fmt: skip


def _speeds(timed: Mapping[str, Speed]) -> Picture:
    """Speed-up over FP32 eager with its interval, and the part of it that comes from the engine alone."""
    total = {name: of.total for name, of in timed.items() if of.total is not None}

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="speed-up over FP32 eager (log scale)")
        _log_scale(axes, "x", (1.0, 2.0, 3.0, 5.0))
        axes.axvline(1, color=MUTED, linewidth=0.8)
        seen = [1.0]
        for row, (name, both) in enumerate(total.items()):
            engine = timed[name].engine
            middle = engine.value if engine else 1.0
            bar(axes, row - 0.17, 1, middle, TEAL)
            if engine:
                bar(axes, row + 0.17, middle, both.value, VIOLET)
            mark(axes, row, *both.parts, INK, "|", 11, markeredgewidth=1.6)
            seen += [middle, *_figures([both])]
        axes.set_xlim(min(seen) / 1.15, max(seen) * 1.15)
        name_rows(axes, total)
        bar(axes, 0, math.nan, math.nan, TEAL, "engine")
        bar(axes, 0, math.nan, math.nan, VIOLET, "precision")
        axes.plot([], [], "|", color=INK, markersize=11, markeredgewidth=1.6, label="both")
        figure.legend(loc="outside upper right", ncols=3)

    said = "; ".join(f"{name} {fold(of)}" for name, of in total.items())
    return draw("speed-up", f"Speed-up over FP32 eager: {said}.", paint, 1.0 + ROW_IN * len(total), caption=(
        "Upper bar: what the engine alone gives, in FP32. Lower bar: what fewer bits give on that engine, left of the "
        "start where they cost time. Mark: both, with its 95 % interval."))  # fmt: skip


def _costs(costs: Costs) -> Picture:
    """Milliseconds per clip by part, with their intervals: what is outside the network in another colour."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="ms per clip")
        reach = 0.0
        for row, (name, part) in enumerate(costs.parts.items()):
            axes.barh(row, part.value, color=AMBER if name in OUTSIDE else BLUE, height=0.6)
            mark(axes, row, None, part.low, part.high, INK)
            end = max(_figures([part]))
            axes.annotate(f"{number(part.value)} ms", (end, row), (5, 0), textcoords="offset points", va="center")
            reach = max(reach, end)
        axes.set_xlim(0, reach * 1.3)
        name_rows(axes, costs.parts)

    said = ", ".join(f"{name} {number(part.value)} ms" for name, part in costs.parts.items())
    return draw("costs", f"What one clip costs: {said}.", paint, 0.75 + 0.34 * len(costs.parts), caption=(
        "One clip in FP32 eager. Amber: outside the network. Blue: the network."))  # fmt: skip
