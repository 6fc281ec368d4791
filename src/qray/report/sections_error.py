"""Parts of the report on where the error comes from: layers, deployment, and the sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qray.engines.parity import kernel_share
from qray.judge.evidence import Evidence
from qray.judge.sensitivity import by_harm
from qray.report.plots_layers import parity_plot, ranges_plot, sensitivity_plot
from qray.report.plots_tradeoff import trials_plot
from qray.words.document import Block, Cell, Fold, Gallery, Grid, Paragraph, Section, figures_grid
from qray.words.figures import estimate, figure, number, share, with_interval

#: Layers whose ranges are shown: the most harmful ones.
WORST_LAYERS = 6


def layers_section(evidence: Evidence) -> Section:
    """Per-layer sensitivity, and the ranges of the worst layers."""
    title = "Where the error comes from: layers"
    record = evidence.sensitivity
    layers = [layer for layer in (record or {}).get("layers") or [] if _is_layer(layer)]
    if record is None or not layers:
        text = "Per-layer sensitivity was not measured: `qray run sensitivity` does, for a study with that section."
        return Section("layers", title, (Paragraph(text, "dim"),))
    worst = by_harm({"layers": layers})
    split, clips = record.get("split", "VAL"), record.get("n_clips")
    where = f"{clips} {split} clips" if clips is not None else f"{split} clips"
    alone = worst[0].get("alone") or {}
    words = (
        f"Each layer quantized alone, and all but it, on {where}. Most sensitive: {worst[0]['layer']}, which alone "
        f"leaves an SQNR of {number(alone.get('sqnr_db'), 1)} dB and changes MAE by "
        f"{with_interval(*_delta(alone), 3, sign=True)}."
    )
    header = ("layer", "Δ MAE alone (95 %)", "SQNR alone, dB", "Δ MAE all but it (95 %)", "SQNR all but it, dB",
              "clipped")  # fmt: skip
    grid = figures_grid(header, map(_layer_row, worst), "Layers by harm")
    plots = tuple(p for p in (sensitivity_plot(layers), ranges_plot(worst[:WORST_LAYERS])) if p is not None)
    return Section("layers", title, (Paragraph(words), Gallery(plots, wide=True), Fold("Figures", (grid,))))


def _is_layer(layer: Any) -> bool:
    """Whether a record is whole: OUT may hold one of another make."""
    parts = ("alone", "all_but", "range")
    return (
        isinstance(layer, Mapping)
        and "layer" in layer
        and all(isinstance(layer.get(p), Mapping) for p in parts)
        and ("sqnr_db" in layer["alone"])
    )


def _layer_row(layer: Mapping[str, Any]) -> tuple[Cell, ...]:
    cells = [Cell(str(layer["layer"]))]
    for part in ("alone", "all_but"):
        cells += [estimate(*_delta(layer[part]), 3, sign=True), figure(layer[part].get("sqnr_db"), 1)]
    return (*cells, share(layer["range"].get("clipped_share"), 2))


def _delta(state: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return state.get("delta_mae"), state.get("delta_low"), state.get("delta_high")


def parity_blocks(evidence: Evidence) -> list[Block]:
    """Deployed predictions against those of the simulated model, from the records of the builds, and the gate."""
    found = {v.name: v.outcome.notes for v in evidence.variants}
    plots = [
        parity_plot(name, *pair)
        for name, notes in found.items()
        if isinstance(parity := notes.get("parity"), Mapping) and (pair := _pair(parity)) is not None
    ]
    rows = tuple(cells for name, notes in found.items() if (cells := _parity_row(name, notes)))
    if not rows:
        return []
    limit = evidence.study.parity.max_kernel_share
    words = (
        "The deployed artifact is what is evaluated. Here it is held against the model with simulated quantization "
        "that it was made from, on VAL clips, which calibrated nothing. What an engine's kernels add (RMS of deployed "
        f"- simulated) may be at most {limit:g} of what quantization costs (RMS of simulated - FP32); else the row is "
        "failed."
    )
    header = ("variant", "kernels, RMS", "quantization, RMS", "share", "largest", "outside ranges")
    grid = figures_grid(header, rows, "Deployed against simulated")
    return [Paragraph(words), grid, *([Gallery(tuple(plots))] if plots else [])]


def _parity_row(name: str, notes: Mapping[str, Any]) -> tuple[Cell, ...] | None:
    kernels, cost = notes.get("kernel_rms"), notes.get("quantization_rms")
    if kernels is None or cost is None:
        return None
    return (
        Cell(name), figure(kernels, 3), figure(cost, 3), figure(kernel_share(notes)),
        figure(notes.get("parity_max_abs"), 3), share(notes.get("outside_share"), 3),
    )  # fmt: skip


def _pair(parity: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        simulated = np.asarray(parity["simulated"], float)
        deployed = np.asarray(parity["deployed"], float)
    except (KeyError, TypeError, ValueError):
        return None
    usable = simulated.shape == deployed.shape and simulated.ndim == 1 and len(simulated) > 0
    return (simulated, deployed) if usable and np.isfinite(simulated).all() and np.isfinite(deployed).all() else None


def sweep_section(evidence: Evidence) -> Section | None:
    """The QAT sweep's trials by VAL MAE."""
    if not evidence.trials:
        return None
    trials = sorted(evidence.trials, key=lambda t: (t.mae is None, t.mae or 0.0, t.variant))
    settings = [trial.chosen for trial in trials]
    names = [name for name in dict.fromkeys(key for found in settings for key in found)
             if len({json.dumps(found.get(name)) for found in settings}) > 1]  # fmt: skip
    rows = tuple(
        (
            Cell(trial.variant), figure(trial.mae, 3), *(Cell(_setting(found.get(name))) for name in names),
            Cell(trial.reason or trial.status),
        )
        for trial, found in zip(trials, settings, strict=True)
    )  # fmt: skip
    grid = Grid(("trial", "MAE on VAL", *names, "state"), rows, "Trials of the sweep", frozenset({1}))
    plot = trials_plot(trials)
    words = "Trials are chosen by VAL alone; TEST has no part in it. Only settings that differ are shown."
    return Section("sweep", "QAT sweep", (Paragraph(words), *([plot] if plot is not None else []), grid))


def _setting(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
