"""Where the error comes from: layers, deployment, and what the sweep tried."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qray.engines.parity import kernel_share
from qray.judge.evidence import Evidence
from qray.judge.row import Row
from qray.judge.sensitivity import by_harm
from qray.report.marks import bar, mark, name_rows
from qray.report.theme import BLUE, GREY, INK, MUTED, RED, ROW_IN, SMALL_IN, VIOLET, draw, gallery
from qray.words.document import Block, Cell, Fold, Grid, Paragraph, Picture, figures_grid
from qray.words.figures import estimate, figure, number, share, with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Layers whose ranges are shown: the most harmful ones.
WORST_LAYERS = 6


def layers(evidence: Evidence) -> list[Block]:
    """Per-layer sensitivity, and the ranges of the worst layers."""
    record = evidence.sensitivity or {}
    found = [layer for layer in record.get("layers") or [] if _is_layer(layer)]
    if not found:
        return [Paragraph(
            "Per-layer sensitivity was not measured: `qray run sensitivity` does, for a study with that section.",
            "dim",
        )]  # fmt: skip
    worst = by_harm({"layers": found})
    clips = f"{record['n_clips']} " if record.get("n_clips") is not None else ""
    alone = worst[0]["alone"]
    words = (
        f"Each layer quantized alone, and all but it, on {clips}{record.get('split', 'VAL')} clips. Most sensitive: "
        f"{worst[0]['layer']}, which alone leaves an SQNR of {number(alone['sqnr_db'], 1)} dB and changes MAE by "
        f"{with_interval(*_delta(alone), 3, sign=True)}."
    )
    header = ("layer", "Δ MAE alone (95 %)", "SQNR alone, dB", "Δ MAE all but it (95 %)", "SQNR all but it, dB",
              "clipped")  # fmt: skip
    grid = figures_grid(header, map(_layer, worst), "Layers by harm")
    plots = gallery(_sensitivity(found), _ranges(worst[:WORST_LAYERS]), wide=True)
    return [Paragraph(words), *plots, Fold("Figures", (grid,))]


def _is_layer(layer: Any) -> bool:
    """Whether a record is whole: OUT may hold one of another make."""
    return (
        isinstance(layer, Mapping)
        and "layer" in layer
        and all(isinstance(layer.get(part), Mapping) for part in ("alone", "all_but", "range"))
        and "sqnr_db" in layer["alone"]
    )


def _layer(layer: Mapping[str, Any]) -> tuple[Cell, ...]:
    cells = [Cell(str(layer["layer"]))]
    for part in ("alone", "all_but"):
        cells += [estimate(*_delta(layer[part]), 3, sign=True), figure(layer[part].get("sqnr_db"), 1)]
    return (*cells, share(layer["range"].get("clipped_share"), 2))


def _delta(state: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return state.get("delta_mae"), state.get("delta_low"), state.get("delta_high")


def _sensitivity(layers: Sequence[Mapping[str, Any]]) -> Picture:
    """Change of MAE and SQNR of each layer, quantized alone and left out; in the network's order."""

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for part, label, colour, shift, marker in (
            ("alone", "this layer alone", BLUE, -0.16, "o"), ("all_but", "all but this layer", VIOLET, 0.16, "D"),
        ):  # fmt: skip
            for row, layer in enumerate(layers):
                mark(left, row + shift, *_delta(layer[part]), colour, marker, 3.6, 1.1)
                mark(right, row + shift, layer[part].get("sqnr_db"), None, None, colour, marker, 3.6)
            left.plot([], [], marker, color=colour, markersize=4, label=label)
        left.axvline(0, color=MUTED, linewidth=0.8)
        left.set_xlabel("change of MAE")
        right.set_xlabel("SQNR, dB")
        for axes in (left, right):
            name_rows(axes, [str(layer["layer"]) for layer in layers], grid=True)
            axes.tick_params(axis="y", labelsize=9)
        figure.legend(loc="outside upper right", ncols=2)

    said = "; ".join(f"{layer['layer']} {number(layer['alone']['sqnr_db'], 1)} dB" for layer in layers)
    alt = f"Change of MAE and SQNR of {len(layers)} layers, each quantized alone and left out. SQNR alone: {said}."
    return draw("sensitivity", alt, paint, 0.9 + 0.25 * len(layers), caption=(
        "Higher SQNR is better. Bars are 95 % intervals of the paired difference to FP32."))  # fmt: skip


def _ranges(layers: Sequence[Mapping[str, Any]]) -> Picture | None:
    """What the observer took for the range of a layer's input, and what VAL clips held; for the layers given."""
    ranges = {str(layer["layer"]): layer["range"] for layer in layers if layer["range"].get("seen_high") is not None}
    if not ranges:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="value of the layer's input")
        for row, found in enumerate(ranges.values()):
            bar(axes, row - 0.15, found["seen_low"], found["seen_high"], GREY)
            bar(axes, row + 0.15, found["observer_low"], found["observer_high"], BLUE)
        name_rows(axes, ranges, grid=True)
        bar(axes, 0, math.nan, math.nan, GREY, "seen on VAL")
        bar(axes, 0, math.nan, math.nan, BLUE, "range of the observer")
        figure.legend(loc="outside upper right", ncols=2)

    said = "; ".join(f"{name}: seen {number(found['seen_low'])} to {number(found['seen_high'])}"
                     for name, found in ranges.items())  # fmt: skip
    return draw("ranges", f"Ranges of activations against the observer's. {said}.", paint, 0.9 + 0.3 * len(ranges))


def parity(evidence: Evidence) -> list[Block]:
    """Deployed predictions against those of the simulated model, from the records of the builds, and the gate."""
    found = {v.name: v.outcome.notes for v in evidence.variants}
    rows = tuple(
        (
            Cell(name), figure(notes["kernel_rms"], 3), figure(notes["quantization_rms"], 3),
            figure(kernel_share(notes)), figure(notes.get("parity_max_abs"), 3), share(notes.get("outside_share"), 3),
        )
        for name, notes in found.items() if kernel_share(notes) is not None
    )  # fmt: skip
    if not rows:
        return []
    words = (
        "The deployed artifact is what is evaluated. Here it is held against the model with simulated quantization "
        "that it was made from, on VAL clips, which calibrated nothing. What an engine's kernels add (RMS of deployed "
        f"- simulated) may be at most {evidence.study.parity.max_kernel_share:g} of what quantization costs (RMS of "
        "simulated - FP32); else the row is failed."
    )
    header = ("variant", "kernels, RMS", "quantization, RMS", "share", "largest", "outside ranges")
    grid = figures_grid(header, rows, "Deployed against simulated")
    return [Paragraph(words), grid, *gallery(*(_parity(name, notes.get("parity")) for name, notes in found.items()))]


def _parity(name: str, record: Any) -> Picture | None:
    """Deployed minus simulated prediction of every VAL clip compared; None for a record of another make."""
    try:
        simulated, deployed = np.asarray(record["simulated"], float), np.asarray(record["deployed"], float)
        difference = deployed - simulated
    except (KeyError, TypeError, ValueError):
        return None
    if difference.ndim != 1 or len(difference) == 0 or not np.isfinite(difference).all():
        return None
    at = int(np.abs(difference).argmax())
    worst = abs(float(difference[at]))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(title=name, xlabel="simulated →, deployed − simulated ↑")
        reach = max(worst * 1.2, 1e-6)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.plot(simulated, difference, "o", color=BLUE, markersize=3.5, alpha=0.7, markeredgewidth=0)
        axes.plot([simulated[at]], [difference[at]], "o", color=RED, markersize=6, markerfacecolor="none")
        axes.set_ylim(-reach, reach)
        axes.spines["bottom"].set_color(INK)

    words = f"{len(difference)} clips; at most {number(worst, 3)} apart"
    return draw(f"parity-{name}", f"{name}: deployed against simulated predictions, {words}", paint, 2.5, SMALL_IN,
                words)  # fmt: skip


def sweep(evidence: Evidence) -> list[Block]:
    """The QAT sweep's trials by VAL MAE."""
    if not evidence.trials:
        return []
    trials = sorted(evidence.trials, key=lambda t: (t.mae is None, t.mae or 0.0, t.variant))
    names = [name for name in dict.fromkeys(name for trial in trials for name in trial.chosen)
             if len({json.dumps(trial.chosen.get(name)) for trial in trials}) > 1]  # fmt: skip
    rows = tuple(
        (
            Cell(trial.variant), figure(trial.mae, 3), *(Cell(_setting(trial.chosen.get(name))) for name in names),
            Cell(trial.reason or trial.status),
        )
        for trial in trials
    )  # fmt: skip
    words = "Trials are chosen by VAL alone; TEST has no part in it. Only settings that differ are shown."
    known = [trial for trial in trials if trial.mae is not None]
    return [
        Paragraph(words),
        *([_trials(known)] if len(known) > 1 else []),
        Grid(("trial", "MAE on VAL", *names, "state"), rows, "Trials of the sweep", frozenset({1})),
    ]


def _setting(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _trials(trials: Sequence[Row]) -> Picture:
    """VAL MAE of the sweep's trials, one row each."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="MAE on VAL")
        axes.locator_params(axis="x", nbins=5)
        for row, trial in enumerate(trials):
            mark(axes, row, trial.mae, None, None, BLUE if trial.weight_bits == 8 else VIOLET, size=6)
        name_rows(axes, [trial.variant for trial in trials])

    said = "; ".join(f"{trial.variant} {number(trial.mae)}" for trial in trials)
    return draw("trials", f"MAE on VAL of the sweep's trials: {said}.", paint, 0.7 + ROW_IN * len(trials), caption=(
        "Blue: 8-bit weights. Violet: 4-bit weights."))  # fmt: skip
