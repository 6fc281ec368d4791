"""Which layers the quantized network loses most in: from predictions per clip and layer to a record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qray.errors import QrayError
from qray.judge.statistics import bootstrap_means, interval


def sqnr_db(signal: float, noise: float) -> float | None:
    """Signal-to-quantization-noise ratio, 10 log10(sum x^2 / sum (x - x_q)^2), in dB; None where one of them is 0.

    Nagel et al., A White Paper on Neural Network Quantization, arXiv 2106.08295, 2021; torch.ao.ns computes the same.
    """
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def summarize(parts: Sequence[Mapping[str, Any]], target: np.ndarray, replicates: int, seed: int) -> dict[str, Any]:
    """The record of a sensitivity analysis, from what `variants.sensitivity.measure_layers` gave for each part, each
    with its layers in the order of the network.

    target: float64 (n,). "delta_mae" of a state is its MAE less
    that of FP32 on the same clips, with a 95 % paired bootstrap interval over clips (null for a single clip).

    Raises:
        QrayError: no clip was predicted in every state.
    """
    measured = {name: value for part in parts for name, value in part["layers"].items()}
    first, layers = parts[0], list(measured)
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
