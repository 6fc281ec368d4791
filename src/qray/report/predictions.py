"""What was predicted: against the label, against FP32, by class of the label, and decisions that turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qray.judge.agreement import BlandAltman
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.places import ClassError, class_errors
from qray.report.marks import dots, mark
from qray.report.theme import AMBER, BLUE, GREY, INK, MUTED, RED, SMALL_IN, TEAL, VIOLET, draw, gallery
from qray.words.document import Block, Cell, Fold, Grid, Paragraph, Picture, figures_grid
from qray.words.figures import NOT_MEASURED, estimate, figure, number, percent, percents, signed, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colour and marker of each variant of a plot.
SERIES = ((INK, "o"), (BLUE, "s"), (AMBER, "D"), (TEAL, "^"), (VIOLET, "v"))
NONE = "No variant has predictions that can be used."


def predictions(evidence: Evidence, leaders: Sequence[VariantEvidence]) -> list[Block]:
    """Scatter and Bland-Altman plots, those of the leaders first."""
    shown = [v for v in evidence.variants if v.clips is not None and not v.clips.empty]
    if not shown:
        return [Paragraph(NONE, "unsure")]
    study = evidence.study

    def plots(variants: Sequence[VariantEvidence]) -> list[Block]:
        # One gallery a variant, so that what belongs together stands in one row where there is room.
        return [
            block
            for variant in variants
            for block in gallery(
                _scatter(variant, study.data.target_column, study.verdict.thresholds),
                _bland_altman(variant, variant.against_label, "label", study.data.target_column),
                _bland_altman(variant, variant.agreement, "fp32", study.data.target_column),
            )
        ]

    rest = [v for v in shown if v not in leaders]
    blocks = [
        Paragraph("Solid line: bias. Dashed lines: limits of agreement, between which 95 % of the differences are "
                  "expected. Shaded: their 95 % intervals (Bland and Altman 1999)."),
        *plots([v for v in leaders if v in shown]),
    ]  # fmt: skip
    if rest:
        blocks.append(Fold(f"The other {len(rest)} variants" if len(rest) > 1 else "The other variant",
                           tuple(plots(rest))))  # fmt: skip
    against = [(v.name, *one) for v in shown for one in (("label", v.against_label), ("FP32", v.agreement))]
    if rows := tuple(_agreement(name, word, of) for name, word, of in against if of is not None):
        header = ("variant", "against", "bias (95 %)", "limits of agreement", "slope", "p of slope")
        blocks.append(Fold("Figures", (Grid(header, rows, "Bland-Altman figures", frozenset({2, 3, 4, 5})),)))
    return blocks


def _agreement(name: str, against: str, of: BlandAltman) -> tuple[Cell, ...]:
    limits = Cell(NOT_MEASURED)
    if of.lower is not None and of.upper is not None:
        limits = Cell(f"{signed(of.lower)} to {signed(of.upper)}", order=of.upper - of.lower)
    bias = estimate(of.bias, of.bias_low, of.bias_high, sign=True)
    return (Cell(name), Cell(against), bias, limits, figure(of.slope, 3, sign=True), figure(of.slope_p, 3))


def _limits(*values: np.ndarray) -> tuple[float, float]:
    """A range that holds all values, with some air; never empty."""
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    air = max(0.05 * (high - low), 1e-6 * max(abs(low), abs(high)), 1e-3)
    return low - air, high + air


def _scatter(variant: VariantEvidence, target: str, thresholds: Sequence[float]) -> Picture:
    """Prediction against label."""
    clips = variant.clips
    assert clips is not None
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


def _bland_altman(variant: VariantEvidence, of: BlandAltman | None, against: str, target: str) -> Picture | None:
    """Difference against mean, with bias and limits of agreement; against: "label" or "fp32"."""
    clips = variant.clips
    if clips is None or of is None:
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
        _band(axes, of.lower, of.lower_low, of.lower_high, RED, "--")
        _band(axes, of.upper, of.upper_low, of.upper_high, RED, "--")
        dots(axes, mean, difference, BLUE if against == "label" else TEAL)

    limits = f", limits {signed(of.lower)} to {signed(of.upper)}" if of.lower is not None else ""
    slope = f", slope {signed(of.slope)}" if of.slope is not None else ""
    words = f"Bias {with_interval(of.bias, of.bias_low, of.bias_high, sign=True)}{limits}{slope}"
    alt = f"{variant.name} minus {named}, {len(clips)} clips. {words}"
    return draw(f"bland-altman-{against}-{variant.name}", alt, paint, 2.9, SMALL_IN, words)


def _band(axes: Axes, value: float | None, low: float | None, high: float | None, colour: str, style: str) -> None:
    if value is not None:
        axes.axhline(value, color=colour, linewidth=1.1, linestyle=style)
    if low is not None and high is not None:
        axes.axhspan(low, high, color=colour, alpha=0.12, linewidth=0)


def classes(evidence: Evidence, leaders: Sequence[VariantEvidence]) -> list[Block]:
    """Error by class of the label."""
    verdict = evidence.study.verdict
    if not verdict.thresholds:
        return [Paragraph("The study names no thresholds (verdict.thresholds), so there are no classes.")]
    errors = {v.name: found for v in leaders if (found := class_errors(v.clips, verdict))}
    if not errors:
        return [Paragraph(NONE)]
    first = next(iter(errors.values()))
    rows = ((Cell(items[0].name), figure(items[0].n, 0), *map(_class_error, items))
            for items in zip(*errors.values(), strict=True))  # fmt: skip
    blocks: list[Block] = [_class_plot(errors, evidence.study.data.target_column),
                           figures_grid(("class", "clips", *errors), rows, "MAE by class")]  # fmt: skip
    if few := [item.name for item in first if 0 < item.n < 10]:
        blocks.append(Paragraph(f"Fewer than 10 clips, so that the interval is not to be trusted: {', '.join(few)}."))
    return blocks


def _class_error(of: ClassError) -> Cell:
    return Cell(NOT_MEASURED) if of.error is None else estimate(of.error.mae, of.error.mae_low, of.error.mae_high)


def _class_plot(errors: Mapping[str, Sequence[ClassError]], target: str) -> Picture:
    """MAE by class of the label, one colour and marker a variant."""
    names = [f"{item.name}\nn = {item.n}" for item in next(iter(errors.values()))]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel=f"class of the label ({target})", ylabel="MAE")
        step = 0.6 / len(errors)
        for at, (variant, items) in enumerate(errors.items()):
            colour, marker = SERIES[at % len(SERIES)]
            for place, item in enumerate(items):
                if (found := item.error) is not None:
                    mark(axes, place + (at - (len(errors) - 1) / 2) * step, found.mae, found.mae_low, found.mae_high,
                         colour, marker, line=1.4, upright=True)  # fmt: skip
            axes.plot([], [], marker, color=colour, markersize=5, label=variant)
        axes.set_xticks(range(len(names)), names)
        axes.set_ylim(bottom=0)
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside upper left", ncols=2)

    said = [f"{variant}: " + "; ".join(f"{item.name}: {number(item.error.mae)}" for item in items if item.error)
            for variant, items in errors.items()]  # fmt: skip
    alt = f"MAE by class of the label with 95 % intervals. {'. '.join(said)}"
    return draw("error-by-class", alt, paint, 3.1)


def decisions(evidence: Evidence) -> list[Block]:
    """Clips that fall on another side of a threshold than with FP32."""
    judged = [v for v in evidence.variants if v.reclassified]
    if not judged:
        return []
    thresholds = [f"{found.threshold:g}" for found in judged[0].reclassified]
    moved = judged[0].comparison.moved if judged[0].comparison is not None else 5.0
    header = ("variant", *(f"turn at {threshold}" for threshold in thresholds), f"move > {moved:g} (95 %)",
              "largest move")  # fmt: skip
    words = (
        f"Share of clips that a variant puts on another side of a threshold than FP32 does, with how many go up and "
        f"down; and of those whose prediction moves by more than {moved:g}, for better or worse."
    )
    sides = figures_grid(("variant", *thresholds), map(_sides, judged), "Sensitivity and specificity against the label")
    return [
        Paragraph(words),
        figures_grid(header, map(_turned, judged), "Clips that turn"),
        Fold("Against the label: sensitivity / specificity of “below the threshold”", (sides,)),
    ]


def _turned(variant: VariantEvidence) -> tuple[Cell, ...]:
    cells = [Cell(f"{percent(found.share, 1)} (+{found.up} −{found.down})", order=found.share)
             for found in variant.reclassified]  # fmt: skip
    of = variant.comparison
    if of is None:
        return (Cell(variant.name), *cells, Cell(NOT_MEASURED), Cell(NOT_MEASURED))
    moved = f"{percent(of.moved_share, 1)} {percents(of.moved_low, of.moved_high)}"
    return (Cell(variant.name), *cells, Cell(moved, order=of.moved_share), figure(of.max_moved))


def _sides(variant: VariantEvidence) -> tuple[Cell, ...]:
    found = [Cell(f"{percent(r.sensitivity)} / {percent(r.specificity)}", order=r.sensitivity)
             for r in variant.reclassified]  # fmt: skip
    return (Cell(variant.name), *found)
