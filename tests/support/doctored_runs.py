"""Finished runs whose predictions were changed afterwards, in ways that a mean does not show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from support.evidence_runs import VARIANTS, key_of, make_run

from qray.graph.store import Store

#: (target, FP32's predictions, a generator) -> the variant's; float64 (n,) each.
Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
FEW = {name: VARIANTS[name] for name in ("fp32", "ptq-openvino")}


def predictions_of(out: Path, variant: str) -> pd.DataFrame:
    """A variant's predictions, as OUT keeps them."""
    (file,) = (Store(out).get("evaluate", key_of("evaluate", variant)) or {})["files"]
    return pq.read_table(out / file, partitioning=None).to_pandas()


def rewrite(out: Path, variant: str, predicted: np.ndarray, target: np.ndarray | None = None) -> None:
    """Change a variant's predictions, or its targets too, and nothing else: results.parquet is stale then."""
    frame = predictions_of(out, variant)
    frame["target"] = frame["target"] if target is None else target
    Store(out).save_predictions(key_of("evaluate", variant), "TEST", frame, predicted, int(frame["seed"].iloc[0]))


def echo(clips: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Targets and FP32's predictions like those of the quickstart: EF 55.5 +- 12.2, an MAE of about 3.3."""
    target = np.clip(rng.normal(55.5, 12.2, clips), 15, 85)
    return target, 55.5 + 0.93 * (target - 55.5) + rng.normal(0, 4, clips)


def doctored_run(out: Path, change: Change, clips: int = 300, **settings: object) -> Path:
    """OUT with FP32 and ptq-openvino, whose predictions are what `change` makes of FP32's."""
    rng = np.random.default_rng(0)
    target, reference = echo(clips, rng)
    make_run(out, variants=FEW, clips=clips, verdict={"bootstrap": 1000, **settings})
    rewrite(out, "mean-predictor", np.full(clips, target.mean()), target)
    rewrite(out, "fp32", reference, target)
    rewrite(out, "ptq-openvino", change(target, reference, rng), target)
    return out


def noise(sd: float) -> Change:
    """An honest variant."""
    return lambda target, reference, rng: reference + rng.normal(0, sd, len(target))


def heavy(scale: float) -> Change:
    """An honest variant whose noise has heavy tails."""
    return lambda target, reference, rng: reference + scale * rng.standard_t(3, len(target))


def bfloat16(sd: float) -> Change:
    """An honest variant that computes its output in bfloat16."""

    def change(target: np.ndarray, reference: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        import torch

        values = torch.from_numpy(reference + rng.normal(0, sd, len(target)))
        rounded: np.ndarray = values.to(torch.bfloat16).double().numpy()
        return rounded

    return change


def clamped(low: int, high: int, sd: float = 0.3) -> Change:
    """So many of the lowest and of the highest predictions are one and the same."""

    def change(target: np.ndarray, reference: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        own = noise(sd)(target, reference, rng)
        ordered = np.sort(own)
        return np.clip(own, ordered[max(low - 1, 0)], ordered[-max(high, 1)])

    return change


def shifted(low: float, high: float, by: float, sd: float = 0.3) -> Change:
    """Clips with a label from low to high are predicted by so much more."""

    def change(target: np.ndarray, reference: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return noise(sd)(target, reference, rng) + by * ((target >= low) & (target < high))

    return change


def shuffled(share: float, end: str, sd: float = 0.3) -> Change:
    """The predictions of one end, or of both, are dealt anew among its clips."""

    def change(target: np.ndarray, reference: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        own = noise(sd)(target, reference, rng)
        order, count = np.argsort(own), round(share * len(own))
        for word, at in (("low", order[:count]), ("high", order[-count:])):
            if end in (word, "both"):
                own[at] = own[rng.permutation(at)]
        return own

    return change


def noisier(low: float, high: float, sd: float) -> Change:
    """Clips with a label from low to high are predicted with much more noise than the others."""

    def change(target: np.ndarray, reference: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        inside = (target >= low) & (target < high)
        return reference + rng.normal(0, 1, len(target)) * np.where(inside, sd, 0.3)

    return change


def in_steps(step: float) -> Change:
    """Predictions are multiples of a step."""
    return lambda target, reference, rng: np.round(reference / step) * step


def both(first: Change, second: Change) -> Change:
    """One change after the other."""
    return lambda target, reference, rng: second(target, first(target, reference, rng), rng)


def openvino_as_it_was(out: Path) -> Path:
    """The run that shipped a variant whose output had the range of its calibration clips (AVX2 machine, quickstart).

    FP32 spans 15.8 to 85.0 over 300 clips; the variant is quantized to 256 steps from 25.257 to 71.175, which are the
    predictions of 8 clips and of 3.
    """

    def fp32(reference: np.ndarray) -> np.ndarray:
        order, ordered = np.argsort(reference), np.sort(reference)
        inner = 26 + (reference - ordered[8]) * (70.5 - 26) / (ordered[-4] - ordered[8])
        inner[order[:8]], inner[order[-3:]] = np.linspace(15.8, 25.0, 8), [71.9, 74.0, 85.0]
        return inner

    def change(target: np.ndarray, reference: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        step = (71.175 - 25.257) / 255
        steps = np.round((fp32(reference) + rng.normal(0, 0.15, len(target)) - 25.257) / step)
        return 25.257 + step * np.clip(steps, 0, 255)

    doctored_run(out, change)
    rewrite(out, "fp32", fp32(predictions_of(out, "fp32")["prediction"].to_numpy()))
    return out
