"""Which layers the quantized network loses most in: from predictions per clip and layer to a record, and its table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from qray.errors import QrayError
from qray.judge.statistics import bootstrap_means, interval

#: Layers shown in a terminal; the record has them all.
SHOWN_LAYERS = 10
NOT_MEASURED = "–"


def sqnr_db(signal: float, noise: float) -> float | None:
    """Signal-to-quantization-noise ratio, 10 log10(sum x^2 / sum (x - x_q)^2), in dB; None where one of them is 0.

    Nagel et al., A White Paper on Neural Network Quantization, arXiv 2106.08295, 2021; torch.ao.ns computes the same.
    """
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def summarize(
    parts: Sequence[Mapping[str, Any]], layers: Sequence[str], target: np.ndarray, replicates: int, seed: int
) -> dict[str, Any]:
    """The record of a sensitivity analysis, from what `variants.sensitivity.measure_layers` gave for each part.

    layers: in the order of the network, each in one part. target: float64 (n,). "delta_mae" of a state is its MAE less
    that of FP32 on the same clips, with a 95 % paired bootstrap interval over clips (null for a single clip).

    Raises:
        QrayError: no clip was predicted in every state.
    """
    measured = {name: value for part in parts for name, value in part["layers"].items()}
    first = parts[0]
    states = [first["all"], *(measured[n][state]["predictions"] for n in layers for state in ("alone", "all_but"))]
    predicted = np.array([first["fp32"], *states], np.float64)
    good = np.isfinite(predicted).all(0) & np.isfinite(target)
    if not good.any():
        raise QrayError(f"sensitivity: none of {len(target)} VAL clips has a finite prediction in every state")
    errors = np.abs(predicted[:, good] - target[good])
    deltas = iter(_differences(errors[1:] - errors[0], replicates, seed))

    def state(noise: float) -> dict[str, Any]:
        return {"sqnr_db": sqnr_db(first["signal"], noise)} | next(deltas)

    together = state(first["all_noise"])
    rows = []
    for name in layers:
        layer = measured[name]
        alone, all_but = state(layer["alone"]["noise"]), state(layer["all_but"]["noise"])
        rows.append({"layer": name, "macs": layer["macs"], "alone": alone, "all_but": all_but, "range": layer["range"]})
    return {
        "n_clips": int(good.sum()), "fp32_mae": float(errors[0].mean()), "sqnr_of": "pooled features",
        **{f"all_{key}": value for key, value in together.items()}, "layers": rows,
    }  # fmt: skip


def _differences(differences: np.ndarray, replicates: int, seed: int) -> list[dict[str, float | None]]:
    """Mean and paired interval of each row of (states, clips); all rows share their draws."""
    bounds: list[tuple[float | None, float | None]] = [(None, None)] * len(differences)
    if (n := differences.shape[1]) > 1:
        means = bootstrap_means(np.ascontiguousarray(differences.T), replicates, seed)
        bounds = [interval(column, n) for column in means.T]
    return [
        {"delta_mae": float(row.mean()), "delta_low": low, "delta_high": high}
        for row, (low, high) in zip(differences, bounds, strict=True)
    ]


def by_harm(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Layers, the most sensitive first: by the SQNR that each leaves when it alone is quantized.

    Not by MAE, which for a single layer is mostly noise on as many clips as VAL gives.
    """

    def key(layer: Mapping[str, Any]) -> float:
        value = layer["alone"]["sqnr_db"]
        return math.inf if value is None else float(value)

    return sorted(record["layers"], key=key)


def _number(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)


def _delta(state: Mapping[str, Any]) -> str:
    low, high = state["delta_low"], state["delta_high"]
    bounds = f" ({low:+.2f}, {high:+.2f})" if low is not None and high is not None else ""
    return _number(state["delta_mae"], "+.2f") + bounds


def render_sensitivity(record: Mapping[str, Any], shown: int = SHOWN_LAYERS) -> Table:
    """The most sensitive layers as a table."""
    layers = by_harm(record)
    grid = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", title_justify="left", title_style="bold",
        title="Most sensitive layers", caption_justify="left", caption_style="dim", caption=_caption(record, shown),
    )  # fmt: skip
    grid.add_column("layer", no_wrap=True)
    for name in ("alone dB", "Δ MAE alone (95 %)", "all but dB", "Δ MAE all but (95 %)", "clipped", "MACs"):
        grid.add_column(name, justify="right", no_wrap=True)
    total = sum(layer["macs"] for layer in layers)
    for layer in layers[:shown]:
        alone, rest = layer["alone"], layer["all_but"]
        clipped = layer["range"]["clipped_share"]
        cells = (
            layer["layer"], _number(alone["sqnr_db"], ".1f"), _delta(alone), _number(rest["sqnr_db"], ".1f"),
            _delta(rest), _number(clipped, ".3%"), f"{layer['macs'] / total:.0%}" if total else NOT_MEASURED,
        )  # fmt: skip
        grid.add_row(*map(Text, cells))
    return grid


def _caption(record: Mapping[str, Any], shown: int) -> str:
    left = len(record["layers"]) - shown
    together = f"all quantized: {_number(record['all_sqnr_db'], '.1f')} dB"
    if record.get("all_delta_mae") is not None:
        together += f", Δ MAE {record['all_delta_mae']:+.2f}"
    return (
        f"SQNR of the {record['sqnr_of']} and MAE against FP32 ({record['fp32_mae']:.2f}), {record['n_clips']} "
        f"{record['split']} clips, {record['weight_bits']}-bit weights; {together}"
        + (f"; {left} more layers in units/" if left > 0 else "")
    )
