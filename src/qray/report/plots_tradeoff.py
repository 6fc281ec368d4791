"""Plots of what accuracy costs: the Pareto front, differences beside speed-ups, and where a clip's time goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qray.answers.pareto import Front, Place
from qray.judge.costs import OUTSIDE, Costs
from qray.judge.evidence import VariantEvidence
from qray.judge.row import Row
from qray.judge.statistics import Estimate
from qray.report.labels import Label, place_labels
from qray.report.theme import AMBER, BLUE, GREEN, GREY, INK, MUTED, RED, TEAL, VIOLET, WASH, draw
from qray.words.document import Picture
from qray.words.figures import fold, number, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VERDICT_COLOUR = {"non-inferior": GREEN, "inferior": RED, "inconclusive": AMBER}
ROW_IN = 0.27


def pareto_plot(front: Front, margin: float, picked: str | None, target: str) -> Picture | None:
    """Latency against loss of accuracy with error bars; None where fewer than two variants can be placed."""
    placed = [place for place in front.places if place.latency_ms is not None and place.error is not None]
    if len(placed) < 2:
        return None
    order = sorted(placed, key=lambda p: (p.name != picked, p.on_front is not True, p.latency_ms.value))  # type: ignore[union-attr]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="latency p50, ms (log scale)", ylabel=f"MAE against FP32, {target}")
        axes.set_xscale("log")
        _pareto_limits(axes, placed, margin)
        axes.axhspan(margin, max(axes.get_ylim()[1], margin), color=WASH, linewidth=0, zorder=0)
        axes.axhline(margin, color=RED, linewidth=1, linestyle="--")
        axes.axhline(0, color=MUTED, linewidth=0.8)
        for place in reversed(order):
            _point(axes, place, place.name == picked)
        place_labels(axes, [_label(place, place.name == picked) for place in order])

    names = ", ".join(place.name for place in placed if place.on_front)
    alt = f"Latency against the difference of MAE to FP32, with 95 % intervals. On the front: {names or 'nothing'}."
    return draw("pareto", alt, paint, 3.9, caption=(
        "Filled: on the front. Hollow: dominated, which is said only where the intervals separate. "
        "The dashed line is the margin; above it is the loss that the study does not put up with."))  # fmt: skip


def _pareto_limits(axes: Axes, placed: Sequence[Place], margin: float) -> None:
    import matplotlib.ticker as ticker

    times = _values(place.latency_ms for place in placed)
    errors = _values(place.error for place in placed)
    low, high = min([*errors, 0.0]), max([*errors, 0.0, margin * 1.15])
    air = 0.08 * (high - low or 1.0)
    axes.set_xlim(min(times) / 1.5, max(times) * 1.5)
    axes.set_ylim(low - air, high + air)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def _values(estimates: Iterable[Estimate | None]) -> list[float]:
    """All figures and bounds that there are."""
    return [v for e in estimates if e is not None for v in e.parts if v is not None]


def _point(axes: Axes, place: Place, picked: bool) -> None:
    assert place.latency_ms is not None
    assert place.error is not None
    colour = GREEN if picked else BLUE if place.on_front else GREY
    x, y = place.latency_ms, place.error
    if x.low is not None and x.high is not None:
        axes.plot([x.low, x.high], [y.value, y.value], color=colour, linewidth=1.2)
    if y.low is not None and y.high is not None:
        axes.plot([x.value, x.value], [y.low, y.high], color=colour, linewidth=1.2)
    axes.plot([x.value], [y.value], "*" if picked else "o", color=colour, markersize=12 if picked else 5.5,
              markerfacecolor=colour if place.on_front else "none")  # fmt: skip


def _label(place: Place, picked: bool) -> Label:
    assert place.latency_ms is not None
    assert place.error is not None
    colour = INK if picked or place.on_front else MUTED
    error = place.error
    return Label(place.latency_ms.value, error.value, place.name, colour, picked, error.low, error.high)


def forest_plot(variants: Sequence[VariantEvidence], margin: float) -> Picture | None:
    """Difference to FP32 with its interval, one row a variant, coloured by verdict; None where nothing was compared."""
    compared = [variant for variant in variants if variant.comparison is not None]
    if not compared:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="MAE against FP32, 95 % interval")
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.axvline(margin, color=RED, linewidth=1, linestyle="--")
        for row, variant in enumerate(compared):
            found = variant.comparison
            assert found is not None
            colour = VERDICT_COLOUR.get(found.verdict or "", GREY)
            if found.delta_low is not None and found.delta_high is not None:
                axes.plot([found.delta_low, found.delta_high], [row, row], color=colour, linewidth=2)
            axes.plot([found.delta], [row], "o", color=colour, markersize=5)
        _rows(axes, [variant.name for variant in compared])

    said = "; ".join(f"{v.name} {signed(v.comparison.delta)}" for v in compared if v.comparison)
    return draw("difference", f"Difference of MAE to FP32 with its 95 % interval: {said}.", paint,
                0.7 + ROW_IN * len(compared), caption=(
        "Green: non-inferior. Amber: inconclusive. Red: inferior. Dashed: the margin."))  # fmt: skip


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def speed_plot(variants: Sequence[VariantEvidence]) -> Picture | None:
    """Speed-up over FP32 eager with its interval, and the part of it that comes from the engine alone."""
    timed = [v for v in variants if v.speed is not None and v.speed.total is not None]
    if not timed:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="speed-up over FP32 eager (log scale)")
        axes.set_xscale("log")
        axes.axvline(1, color=MUTED, linewidth=0.8)
        low, high = 1.0, 1.0
        for row, variant in enumerate(timed):
            speed = variant.speed
            assert speed is not None
            assert speed.total is not None
            engine, total = speed.engine, speed.total
            middle = engine.value if engine else 1.0
            axes.plot([1, middle], [row - 0.17] * 2, color=TEAL, linewidth=4, solid_capstyle="butt",
                      label="engine" if row == 0 else None)  # fmt: skip
            if engine:
                axes.plot([middle, total.value], [row + 0.17] * 2, color=VIOLET, linewidth=4, solid_capstyle="butt",
                          label=None)  # fmt: skip
            if total.low is not None and total.high is not None:
                axes.plot([total.low, total.high], [row, row], color=INK, linewidth=1.2)
            axes.plot([total.value], [row], "|", color=INK, markersize=11, markeredgewidth=1.6)
            values = [v for v in (middle, total.value, total.low, total.high) if v is not None]
            low, high = min(low, *values), max(high, *values)
        axes.plot([], [], color=VIOLET, linewidth=4, label="precision")
        axes.plot([], [], "|", color=INK, markersize=11, markeredgewidth=1.6, label="both")
        axes.set_xlim(low / 1.15, high * 1.15)
        _log_ticks(axes)
        _rows(axes, [variant.name for variant in timed])
        figure.legend(loc="outside upper right", ncols=3)

    said = "; ".join(f"{v.name} {fold(v.speed.total)}" for v in timed if v.speed and v.speed.total)
    return draw("speed-up", f"Speed-up over FP32 eager: {said}.", paint, 1.0 + ROW_IN * len(timed), caption=(
        "Upper bar: what the engine alone gives, in FP32. Lower bar: what fewer bits give on that engine, left of the "
        "start where they cost time. Mark: both, with its 95 % interval."))  # fmt: skip


def _log_ticks(axes: Axes) -> None:
    import matplotlib.ticker as ticker

    axes.xaxis.set_major_locator(ticker.FixedLocator([0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50]))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def costs_plot(costs: Costs) -> Picture:
    """Milliseconds per clip by part, with their intervals: what is outside the network in another colour."""
    parts = list(costs.parts.items())

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="ms per clip")
        reach = 0.0
        for row, (name, part) in enumerate(parts):
            axes.barh(row, part.value, color=AMBER if name in OUTSIDE else BLUE, height=0.6)
            end = part.value
            if part.low is not None and part.high is not None:
                axes.plot([part.low, part.high], [row, row], color=INK, linewidth=1.2)
                end = max(end, part.high)
            axes.annotate(f"{number(part.value)} ms", (end, row), (5, 0), textcoords="offset points", va="center")
            reach = max(reach, end)
        axes.set_xlim(0, reach * 1.3)
        _rows(axes, [name for name, _ in parts])

    said = ", ".join(f"{name} {number(part.value)} ms" for name, part in parts)
    return draw("costs", f"What one clip costs: {said}.", paint, 0.75 + 0.34 * len(parts), caption=(
        "One clip in FP32 eager. Amber: outside the network. Blue: the network."))  # fmt: skip


def trials_plot(trials: Sequence[Row]) -> Picture | None:
    """VAL MAE of the sweep's trials, one row each."""
    from matplotlib.ticker import MaxNLocator

    known_ = [(trial, trial.mae) for trial in trials if trial.mae is not None]
    if len(known_) < 2:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="MAE on VAL")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        for row, (trial, mae) in enumerate(known_):
            axes.plot([mae], [row], "o", color=BLUE if trial.weight_bits == 8 else VIOLET, markersize=6)
        _rows(axes, [trial.variant for trial, _ in known_])

    said = "; ".join(f"{trial.variant} {number(mae)}" for trial, mae in known_)
    return draw("trials", f"MAE on VAL of the sweep's trials: {said}.", paint, 0.7 + ROW_IN * len(known_), caption=(
        "Blue: 8-bit weights. Violet: 4-bit weights."))  # fmt: skip
