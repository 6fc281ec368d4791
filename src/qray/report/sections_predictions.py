"""Parts of the report on predictions: against the label, against FP32, by class, and decisions that turn."""

from __future__ import annotations

from collections.abc import Sequence

from qray.judge.agreement import BlandAltman
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.places import ClassError, class_errors
from qray.report.plots_accuracy import bland_altman_plot, class_plot, scatter
from qray.words.document import Block, Cell, Fold, Gallery, Grid, Paragraph, Picture, Section, figures_grid
from qray.words.figures import NOT_MEASURED, estimate, figure, percent, percents, signed


def _target(evidence: Evidence) -> str:
    return evidence.study.data.target_column


def predictions_section(evidence: Evidence, leaders: Sequence[VariantEvidence]) -> Section:
    """Scatter and Bland-Altman plots, those of the leaders first."""
    title = "Predictions, clip by clip"
    shown = [v for v in evidence.variants if v.clips is not None and not v.clips.empty]
    if not shown:
        return Section("predictions", title, (Paragraph("No variant has predictions that can be used.", "unsure"),))
    first = [v for v in leaders if v in shown]
    rest = [v for v in shown if v not in first]
    blocks: list[Block] = [
        Paragraph("Solid line: bias. Dashed lines: limits of agreement, between which 95 % of the differences are "
                  "expected. Shaded: their 95 % intervals (Bland and Altman 1999)."),
        *_galleries(evidence, first),
    ]  # fmt: skip
    if rest:
        inner = tuple(_galleries(evidence, rest))
        blocks.append(Fold(f"The other {len(rest)} variants" if len(rest) > 1 else "The other variant", inner))
    against = [(v.name, *one) for v in shown for one in (("label", v.against_label), ("FP32", v.agreement))]
    rows = tuple(_agreement_row(name, word, of) for name, word, of in against if of is not None)
    if rows:
        header = ("variant", "against", "bias (95 %)", "limits of agreement", "slope", "p of slope")
        grid = Grid(header, rows, "Bland-Altman figures", frozenset({2, 3, 4, 5}))
        blocks.append(Fold("Figures", (grid,)))
    return Section("predictions", title, tuple(blocks))


def _galleries(evidence: Evidence, variants: Sequence[VariantEvidence]) -> list[Block]:
    thresholds = evidence.study.verdict.thresholds
    target = _target(evidence)
    blocks: list[Block] = []
    # One gallery a variant, so that what belongs together stands in one row where there is room.
    for variant in variants:
        plots: list[Picture | None] = [
            scatter(variant, target, thresholds),
            bland_altman_plot(variant, variant.against_label, "label", target),
            bland_altman_plot(variant, variant.agreement, "fp32", target),
        ]
        blocks.append(Gallery(tuple(plot for plot in plots if plot is not None)))
    return blocks


def _agreement_row(name: str, against: str, of: BlandAltman) -> tuple[Cell, ...]:
    limits = Cell(NOT_MEASURED)
    if of.lower is not None and of.upper is not None:
        limits = Cell(f"{signed(of.lower)} to {signed(of.upper)}", order=of.upper - of.lower)
    bias = estimate(of.bias, of.bias_low, of.bias_high, sign=True)
    return (Cell(name), Cell(against), bias, limits, figure(of.slope, 3, sign=True), figure(of.slope_p, 3))


def classes_section(evidence: Evidence, leaders: Sequence[VariantEvidence]) -> Section:
    """Error by class of the label."""
    target = _target(evidence)
    title = f"Error by {target} class"
    verdict = evidence.study.verdict
    if not verdict.thresholds:
        text = "The study names no thresholds (verdict.thresholds), so there are no classes."
        return Section("classes", title, (Paragraph(text),))
    errors = {v.name: found for v in leaders if (found := class_errors(v.clips, verdict))}
    if not errors:
        return Section("classes", title, (Paragraph("No variant has predictions that can be used."),))
    rows = map(_class_row, zip(*errors.values(), strict=True))
    few = [item.name for item in next(iter(errors.values())) if 0 < item.n < 10]
    blocks: list[Block] = [class_plot(errors, target), figures_grid(("class", "clips", *errors), rows, "MAE by class")]
    if few:
        blocks.append(Paragraph(f"Fewer than 10 clips, so that the interval is not to be trusted: {', '.join(few)}."))
    return Section("classes", title, tuple(blocks))


def _class_row(items: Sequence[ClassError]) -> tuple[Cell, ...]:
    errors = (
        Cell(NOT_MEASURED) if error is None else estimate(error.mae, error.mae_low, error.mae_high)
        for error in (item.error for item in items)
    )
    return (Cell(items[0].name), figure(items[0].n, 0), *errors)


def decisions_section(evidence: Evidence) -> Section | None:
    """Clips that fall on another side of a threshold than with FP32."""
    judged = [v for v in evidence.variants if v.reclassified]
    if not judged:
        return None
    thresholds = [found.threshold for found in judged[0].reclassified]
    moved = judged[0].comparison.moved if judged[0].comparison is not None else 5.0
    header = ("variant", *(f"turn at {threshold:g}" for threshold in thresholds), f"move > {moved:g} (95 %)",
              "largest move")  # fmt: skip
    grid = figures_grid(header, map(_turned_row, judged), "Clips that turn")
    words = (
        f"Share of clips that a variant puts on another side of a threshold than FP32 does, with how many go up and "
        f"down; and of those whose prediction moves by more than {moved:g}, for better or worse."
    )
    header = ("variant", *(f"{t:g}" for t in thresholds))
    sides = figures_grid(header, map(_sides, judged), "Sensitivity and specificity against the label")
    fold = Fold("Against the label: sensitivity / specificity of “below the threshold”", (sides,))
    return Section("decisions", "Decisions that turn", (Paragraph(words), grid, fold))


def _turned_row(variant: VariantEvidence) -> tuple[Cell, ...]:
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
