"""From predictions per layer to the record and its table: known differences, intervals, order, and what is null."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from qray.errors import QrayError
from qray.judge.sensitivity import by_harm, sqnr_db, summarize
from qray.judge.statistics import paired_difference
from qray.words.show_run import render_sensitivity

TARGET = np.array([50.0, 60.0, 70.0, 40.0])
FP32 = TARGET + np.array([1.0, -1.0, 2.0, -2.0])
RANGE = {"observer_low": 0.0, "observer_high": 4.0, "seen_low": 0.0, "seen_high": 5.0, "clipped_share": 0.01}


def state(predictions: np.ndarray, noise: float) -> dict[str, Any]:
    return {"predictions": [None if np.isnan(p) else float(p) for p in predictions], "noise": noise}


def part(layers: dict[str, tuple[np.ndarray, float]], fp32: np.ndarray = FP32) -> dict[str, Any]:
    """Layers by name with their predictions and noise alone; all but one is FP32 with noise 1."""
    measured = {
        name: {"macs": 100, "alone": state(alone, noise), "all_but": state(fp32, 1.0), "range": RANGE}
        for name, (alone, noise) in layers.items()
    }
    whole = state(fp32, 1.0)["predictions"]
    return {"fp32": whole, "all": whole, "signal": 1000.0, "all_noise": 10.0, "layers": measured}


def worse(by: float) -> np.ndarray:
    """FP32's predictions, every one of them further from the label."""
    return FP32 + np.sign(FP32 - TARGET) * by


def record(*parts: dict[str, Any]) -> dict[str, Any]:
    return summarize(parts, TARGET[: len(parts[0]["fp32"])], 200, 0) | {"weight_bits": 8, "split": "VAL"}


def test_sqnr_is_ten_decibels_per_power_of_ten() -> None:
    assert sqnr_db(1000.0, 10.0) == pytest.approx(20.0)


@pytest.mark.parametrize(("signal", "noise"), [(1.0, 0.0), (0.0, 1.0)])
def test_a_ratio_that_does_not_exist_is_null(signal: float, noise: float) -> None:
    assert sqnr_db(signal, noise) is None


def test_the_change_of_mae_is_that_of_the_layer_alone() -> None:
    found = record(part({"conv1": (worse(0.5), 1.0)}))["layers"][0]
    assert found["alone"]["delta_mae"] == pytest.approx(0.5)
    assert found["all_but"]["delta_mae"] == 0.0


def test_the_interval_is_the_paired_bootstrap_of_the_verdicts() -> None:
    alone = FP32 + np.array([0.3, 0.1, -0.2, 0.4])
    found = record(part({"conv1": (alone, 1.0)}))["layers"][0]["alone"]
    _, (low, high) = paired_difference(np.abs(alone - TARGET), np.abs(FP32 - TARGET), 200, 0)
    assert (found["delta_low"], found["delta_high"]) == pytest.approx((low, high))


def test_parts_come_together_in_the_order_of_the_network() -> None:
    found = record(part({"conv1": (FP32, 1.0)}), part({"layer1.0.conv1": (FP32, 2.0)}))["layers"]
    assert [layer["layer"] for layer in found] == ["conv1", "layer1.0.conv1"]


def test_a_clip_without_a_finite_prediction_is_left_out_everywhere() -> None:
    alone = worse(0.5)
    alone[0] = np.nan
    found = record(part({"conv1": (alone, 1.0)}))
    assert found["n_clips"] == 3
    assert found["fp32_mae"] == pytest.approx(5 / 3)


def test_one_clip_has_no_interval() -> None:
    found = record(part({"conv1": (worse(0.5)[:1], 1.0)}, fp32=FP32[:1]))["layers"][0]["alone"]
    assert found["delta_mae"] == pytest.approx(0.5)
    assert found["delta_low"] is found["delta_high"] is None


def test_no_finite_clip_at_all_is_a_sentence() -> None:
    with pytest.raises(QrayError, match="none of 4 VAL clips has a finite prediction"):
        record(part({"conv1": (np.full(4, np.nan), 1.0)}))


def test_the_most_sensitive_layer_is_the_one_with_the_least_sqnr_alone() -> None:
    found = record(part({"quiet": (FP32, 1.0), "exact": (FP32, 0.0), "loud": (FP32, 9.0)}))  # fmt: skip
    assert [layer["layer"] for layer in by_harm(found)] == ["loud", "quiet", "exact"]


def test_the_record_is_json() -> None:
    found = record(part({"conv1": (FP32, 0.0)}))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def shown(found: dict[str, Any], layers: int) -> str:
    console = Console(width=160, record=True, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    console.print(render_sensitivity(found, layers))
    return console.export_text()


def test_the_table_shows_the_worst_layers_and_says_how_many_are_left() -> None:
    found = record(part({"quiet": (FP32, 1.0), "loud": (worse(0.5), 9.0)}))
    text = shown(found, 1)
    assert "loud" in text
    assert "+0.50 (+0.50, +0.50)" in text
    assert "quiet" not in text
    assert "1 more layers" in text
