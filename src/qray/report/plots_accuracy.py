"""Plots of what was predicted: against the label, against FP32, and by class of the label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qray.judge.agreement import BlandAltman
from qray.judge.evidence import VariantEvidence
from qray.judge.places import ClassError
from qray.report.theme import AMBER, BLUE, GREY, INK, MUTED, RED, SMALL_IN, TEAL, VIOLET, dots, draw
from qray.words.document import Picture
from qray.words.figures import number, signed, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = (INK, BLUE, AMBER, TEAL, VIOLET)
MARKERS = ("o", "s", "D", "^", "v")


def _limits(*values: np.ndarray) -> tuple[float, float]:
    """A range that holds all values, with some air; never empty."""
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    air = max(0.05 * (high - low), 1e-6 * max(abs(low), abs(high)), 1e-3)
    return low - air, high + air


def scatter(variant: VariantEvidence, target: str, thresholds: Sequence[float]) -> Picture | None:
    """Prediction against label; None without predictions."""
    clips = variant.clips
    if clips is None or clips.empty:
        return None
    truth, predicted = clips["target"].to_numpy(float), clips["prediction"].to_numpy(float)
    low, high = _limits(truth, predicted)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(title=variant.name, xlabel=f"{target}: label →, predicted ↑")
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        for threshold in thresholds:
            axes.axvline(threshold, color=GREY, linewidth=0.6, linestyle=":")
            axes.axhline(threshold, color=GREY, linewidth=0.6, linestyle=":")
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1)
        dots(axes, truth, predicted, BLUE)

    found = variant.accuracy
    words = f"MAE {with_interval(found.mae, found.mae_low, found.mae_high)}" if found else ""
    r2 = f", R² {number(found.r2)}" if found and found.r2 is not None else ""
    alt = f"{variant.name}: predicted {target} against the label of {len(clips)} clips. {words}{r2}"
    return draw(f"scatter-{variant.name}", alt, paint, SMALL_IN, SMALL_IN, f"{words}{r2}")


def bland_altman_plot(variant: VariantEvidence, of: BlandAltman | None, against: str, target: str) -> Picture | None:
    """Difference against mean, with bias and limits of agreement; against: "label" or "fp32"."""
    clips = variant.clips
    if clips is None or clips.empty or of is None:
        return None
    other = clips["target" if against == "label" else "reference"].to_numpy(float)
    predicted = clips["prediction"].to_numpy(float)
    difference, mean = predicted - other, (predicted + other) / 2
    named = "the label" if against == "label" else "FP32"
    edges = np.array([value for value in (of.lower, of.upper, of.lower_low, of.upper_high, 0.0) if value is not None])

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(
            title=f"{variant.name} − {named.removeprefix('the ')}", xlabel=f"{target}: mean of both →, difference ↑",
        )  # fmt: skip
        axes.set(xlim=_limits(mean), ylim=_limits(difference, edges))
        axes.axhline(0, color=MUTED, linewidth=0.8)
        _band(axes, of.bias, of.bias_low, of.bias_high, INK, "-")
        for value, low, high in ((of.lower, of.lower_low, of.lower_high), (of.upper, of.upper_low, of.upper_high)):
            if value is not None:
                _band(axes, value, low, high, RED, "--")
        dots(axes, mean, difference, BLUE if against == "label" else TEAL)

    limits = f", limits {signed(of.lower)} to {signed(of.upper)}" if of.lower is not None else ""
    slope = f", slope {signed(of.slope)}" if of.slope is not None else ""
    words = f"Bias {with_interval(of.bias, of.bias_low, of.bias_high, sign=True)}{limits}{slope}"
    alt = f"{variant.name} minus {named}, {len(clips)} clips. {words}"
    return draw(f"bland-altman-{against}-{variant.name}", alt, paint, 2.9, SMALL_IN, words)


def _band(axes: Axes, value: float, low: float | None, high: float | None, colour: str, style: str) -> None:
    axes.axhline(value, color=colour, linewidth=1.1, linestyle=style)
    if low is not None and high is not None:
        axes.axhspan(low, high, color=colour, alpha=0.12, linewidth=0)


def class_plot(errors: dict[str, list[ClassError]], target: str) -> Picture:
    """MAE by class of the label, one colour and marker a variant."""
    names = [f"{item.name}\nn = {item.n}" for item in next(iter(errors.values()))]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel=f"class of the label ({target})", ylabel="MAE")
        step = 0.6 / max(1, len(errors))
        for number_, (variant, items) in enumerate(errors.items()):
            colour, marker = SERIES[number_ % len(SERIES)], MARKERS[number_ % len(MARKERS)]
            label: str | None = variant
            for place, item in enumerate(items):
                if item.error is None:
                    continue
                x = place + (number_ - (len(errors) - 1) / 2) * step
                low, high, mae = item.error.mae_low, item.error.mae_high, item.error.mae
                if low is not None and high is not None:
                    axes.plot([x, x], [low, high], color=colour, linewidth=1.4)
                axes.plot([x], [mae], marker, color=colour, markersize=5, label=label)
                label = None
        axes.set_xticks(range(len(names)), names)
        axes.set_ylim(bottom=0)
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside upper left", ncols=2)

    parts = []
    for variant, items in errors.items():
        figures = "; ".join(f"{item.name}: {number(item.error.mae)}" for item in items if item.error)
        parts.append(f"{variant}: {figures}")
    alt = f"MAE by class of the label with 95 % intervals. {'. '.join(parts)}"
    return draw("error-by-class", alt, paint, 3.1)
