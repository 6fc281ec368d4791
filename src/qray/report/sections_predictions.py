"""Parts of the report on predictions: against the label, against FP32, by class, and decisions that turn."""

from __future__ import annotations

from collections.abc import Sequence

from qray.judge.agreement import BlandAltman
from qray.judge.evidence import Evidence, VariantEvidence
from qray.report.plots_accuracy import ClassError, bland_altman_plot, class_errors, class_plot, scatter
from qray.words.document import Block, Cell, Fold, Gallery, Grid, Paragraph, Picture, Section
from qray.words.figures import number, percent, signed, with_interval


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
    rows = [row for v in shown for row in _agreement_rows(v)]
    header = ("variant", "against", "bias (95 %)", "limits of agreement", "slope", "p of slope")
    if rows:
        grid = Grid(header, tuple(rows), "Bland-Altman figures", frozenset({2, 3, 4, 5}))
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


def _agreement_rows(variant: VariantEvidence) -> list[tuple[Cell, ...]]:
    found = [("label", variant.against_label), ("FP32", variant.agreement)]
    return [_agreement_row(variant.name, against, of) for against, of in found if of is not None]


def _agreement_row(name: str, against: str, of: BlandAltman) -> tuple[Cell, ...]:
    limits = f"{signed(of.lower)} to {signed(of.upper)}" if of.lower is not None else "–"
    width = of.upper - of.lower if of.upper is not None and of.lower is not None else None
    return (
        Cell(name), Cell(against), Cell(with_interval(of.bias, of.bias_low, of.bias_high, sign=True), order=of.bias),
        Cell(limits, order=width), Cell(signed(of.slope, 3), order=of.slope),
        Cell(number(of.slope_p, 3), order=of.slope_p),
    )  # fmt: skip


def classes_section(evidence: Evidence, leaders: Sequence[VariantEvidence]) -> Section:
    """Error by class of the label."""
    target = _target(evidence)
    title = f"Error by {target} class"
    verdict = evidence.study.verdict
    if not verdict.thresholds:
        text = "The study names no thresholds (verdict.thresholds), so there are no classes."
        return Section("classes", title, (Paragraph(text),))
    errors = {v.name: found for v in leaders if (found := class_errors(v, verdict))}
    if not errors:
        return Section("classes", title, (Paragraph("No variant has predictions that can be used."),))
    header = ("class", "clips", *errors)
    rows = tuple(_class_row(items) for items in zip(*errors.values(), strict=True))
    few = [item.name for item in next(iter(errors.values())) if 0 < item.n < 10]
    blocks: list[Block] = [
        class_plot(errors, target),
        Grid(header, rows, "MAE by class", frozenset(range(1, len(header)))),
    ]
    if few:
        blocks.append(Paragraph(f"Fewer than 10 clips, so that the interval is not to be trusted: {', '.join(few)}."))
    return Section("classes", title, tuple(blocks))


def _class_row(items: Sequence[ClassError]) -> tuple[Cell, ...]:
    cells = [Cell(items[0].name), Cell(str(items[0].n), order=items[0].n)]
    for item in items:
        error = item.error
        if error is None:
            cells.append(Cell("–"))
        else:
            cells.append(Cell(with_interval(error.mae, error.mae_low, error.mae_high), order=error.mae))
    return tuple(cells)


def decisions_section(evidence: Evidence) -> Section | None:
    """Clips that fall on another side of a threshold than with FP32."""
    judged = [v for v in evidence.variants if v.reclassified]
    if not judged:
        return None
    thresholds = [found.threshold for found in judged[0].reclassified]
    rows = []
    for variant in judged:
        cells = [Cell(variant.name)]
        for found in variant.reclassified:
            text = f"{percent(found.share, 1)} (+{found.up} −{found.down})"
            cells.append(Cell(text, order=found.share))
        compared = variant.comparison
        if compared is not None:
            between = f"({percent(compared.moved_low, 1)} to {percent(compared.moved_high, 1)})"
            text = f"{percent(compared.moved_share, 1)} {between}"
            cells += [
                Cell(text, order=compared.moved_share),
                Cell(number(compared.max_moved), order=compared.max_moved),
            ]
        else:
            cells += [Cell("–"), Cell("–")]
        rows.append(tuple(cells))
    moved = judged[0].comparison.moved if judged[0].comparison is not None else 5.0
    header = (
        "variant",
        *(f"turn at {threshold:g}" for threshold in thresholds),
        f"move > {moved:g} (95 %)",
        "largest move",
    )
    grid = Grid(header, tuple(rows), "Clips that turn", frozenset(range(1, len(header))))
    words = (
        f"Share of clips that a variant puts on another side of a threshold than FP32 does, with how many go up and "
        f"down; and of those whose prediction moves by more than {moved:g}, for better or worse."
    )
    last = tuple(_sides(v) for v in judged)
    sides = Grid(("variant", *(f"{t:g}" for t in thresholds)), last, "Sensitivity and specificity against the label",
                 frozenset(range(1, len(thresholds) + 1)))  # fmt: skip
    fold = Fold("Against the label: sensitivity / specificity of “below the threshold”", (sides,))
    return Section("decisions", "Decisions that turn", (Paragraph(words), grid, fold))


def _sides(variant: VariantEvidence) -> tuple[Cell, ...]:
    found = [Cell(f"{percent(r.sensitivity)} / {percent(r.specificity)}", order=r.sensitivity)
             for r in variant.reclassified]  # fmt: skip
    return (Cell(variant.name), *found)
