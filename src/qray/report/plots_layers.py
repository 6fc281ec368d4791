"""Plots of where the error comes from: layer by layer, and simulated against deployed predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qray.report.theme import BLUE, GREY, INK, MUTED, RED, SMALL_IN, VIOLET, draw
from qray.words.document import Picture
from qray.words.figures import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW_IN = 0.25


def sensitivity_plot(layers: Sequence[Mapping[str, Any]]) -> Picture:
    """Change of MAE and SQNR of each layer, quantized alone and left out; in the network's order."""
    names = [str(layer["layer"]) for layer in layers]

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for row, layer in enumerate(layers):
            for part, colour, shift, marker in (("alone", BLUE, -0.16, "o"), ("all_but", VIOLET, 0.16, "D")):
                found = layer.get(part) or {}
                low, high, delta = found.get("delta_low"), found.get("delta_high"), found.get("delta_mae")
                if low is not None and high is not None:
                    left.plot([low, high], [row + shift] * 2, color=colour, linewidth=1.1)
                if delta is not None:
                    left.plot([delta], [row + shift], marker, color=colour, markersize=3.6)
                if found.get("sqnr_db") is not None:
                    right.plot([found["sqnr_db"]], [row + shift], marker, color=colour, markersize=3.6)
        left.axvline(0, color=MUTED, linewidth=0.8)
        left.set(xlabel="change of MAE", ylim=(len(names) - 0.5, -0.5))
        left.set_yticks(range(len(names)), names, fontsize=9)
        left.tick_params(axis="y", length=0)
        right.set(xlabel="SQNR, dB")
        right.tick_params(axis="y", length=0)
        for label, colour, marker in (("this layer alone", BLUE, "o"), ("all but this layer", VIOLET, "D")):
            left.plot([], [], marker, color=colour, markersize=4, label=label)
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper right", ncols=2)

    said = "; ".join(f"{layer['layer']} {number((layer.get('alone') or {}).get('sqnr_db'), 1)} dB" for layer in layers)
    alt = f"Change of MAE and SQNR of {len(layers)} layers, each quantized alone and left out. SQNR alone: {said}."
    return draw("sensitivity", alt, paint, 0.9 + ROW_IN * len(layers), caption=(
        "Higher SQNR is better. Bars are 95 % intervals of the paired difference to FP32."))  # fmt: skip


def ranges_plot(layers: Sequence[Mapping[str, Any]]) -> Picture | None:
    """What the observer took for the range of a layer's input, and what VAL clips held; for the layers given."""
    shown = [layer for layer in layers if (layer.get("range") or {}).get("seen_high") is not None]
    if not shown:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="value of the layer's input")
        for row, layer in enumerate(shown):
            found = layer["range"]
            axes.plot([found["seen_low"], found["seen_high"]], [row - 0.15] * 2, color=GREY, linewidth=4,
                      solid_capstyle="butt")  # fmt: skip
            axes.plot([found["observer_low"], found["observer_high"]], [row + 0.15] * 2, color=BLUE, linewidth=4,
                      solid_capstyle="butt")  # fmt: skip
        axes.set_yticks(range(len(shown)), [str(layer["layer"]) for layer in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.plot([], [], color=GREY, linewidth=4, label="seen on VAL")
        axes.plot([], [], color=BLUE, linewidth=4, label="range of the observer")
        figure.legend(loc="outside upper right", ncols=2)

    said = "; ".join(
        f"{layer['layer']}: seen {number(layer['range']['seen_low'])} to {number(layer['range']['seen_high'])}"
        for layer in shown
    )
    return draw("ranges", f"Ranges of activations against the observer's. {said}.", paint, 0.9 + 0.3 * len(shown))


def parity_plot(name: str, simulated: np.ndarray, deployed: np.ndarray) -> Picture:
    """Deployed minus simulated prediction of every calibration clip; float64 (n,) each."""
    difference = deployed - simulated
    worst = float(np.abs(difference).max())

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(title=name, xlabel="simulated →, deployed − simulated ↑")
        reach = max(worst * 1.2, 1e-6)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.plot(simulated, difference, "o", color=BLUE, markersize=3.5, alpha=0.7, markeredgewidth=0)
        at = int(np.abs(difference).argmax())
        axes.plot([simulated[at]], [difference[at]], "o", color=RED, markersize=6, markerfacecolor="none")
        axes.set_ylim(-reach, reach)
        axes.spines["bottom"].set_color(INK)

    words = f"{len(difference)} clips; at most {number(worst, 3)} apart"
    return draw(f"parity-{name}", f"{name}: deployed against simulated predictions, {words}", paint, 2.5, SMALL_IN,
                words)  # fmt: skip
