"""Accuracy with intervals, from predictions per clip alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Interval = tuple[float, float]
VerdictWord = Literal["non-inferior", "inferior", "inconclusive"]
LEVEL = 0.95
#: Replicates are drawn this many indices at a time, which bounds memory to some tens of MB.
CHUNK = 2_000_000


@dataclass(frozen=True)
class Accuracy:
    """Error of one variant on n clips, in target units; intervals are 95 % percentile bootstrap over clips.

    The interval is None for a single clip, which tells nothing of how clips differ.
    """

    n_clips: int
    mae: float
    mae_low: float | None
    mae_high: float | None
    rmse: float
    r2: float | None


def bootstrap_means(values: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Means of resampled rows: float64 (n, k) -> (replicates, k). Rows of one draw keep their columns paired.

    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6.
    """
    n = len(values)
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // n)
    means = [values[rng.integers(0, n, (min(step, replicates - at), n))].mean(1) for at in range(0, replicates, step)]
    return np.concatenate(means)


def interval(replicates: np.ndarray) -> Interval:
    """Percentile interval at 95 % (Efron & Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def accuracy(target: np.ndarray, predicted: np.ndarray, replicates: int, seed: int) -> Accuracy:
    """MAE with its interval, RMSE, and R2 = 1 - SSE/SST (None where all targets are the same).

    Raises:
        ValueError: no clip, or a prediction that is not finite.
    """
    if len(target) == 0:
        raise ValueError("no clip was predicted")
    if not np.isfinite(predicted).all():
        raise ValueError(f"{int((~np.isfinite(predicted)).sum())} of {len(predicted)} predictions are not finite")
    error = np.abs(predicted - target)
    low, high = interval(bootstrap_means(error[:, None], replicates, seed)) if len(target) > 1 else (None, None)
    # The mean of equal floats may be off by a rounding error, so the range is what tells that they are equal.
    spread = float(np.square(target - target.mean()).sum()) if np.ptp(target) > 0 else 0.0
    return Accuracy(
        n_clips=len(target), mae=float(error.mean()), mae_low=low, mae_high=high,
        rmse=float(np.sqrt(np.square(error).mean())),
        r2=1 - float(np.square(error).sum()) / spread if spread > 0 else None,
    )  # fmt: skip


def paired_difference(error: np.ndarray, reference: np.ndarray, replicates: int, seed: int) -> tuple[float, Interval]:
    """Difference of mean absolute errors on the same clips, with its paired bootstrap interval."""
    difference = error - reference
    return float(difference.mean()), interval(bootstrap_means(difference[:, None], replicates, seed))


def paired_ratio(error: np.ndarray, reference: np.ndarray, replicates: int, seed: int) -> tuple[float, Interval] | None:
    """Ratio of mean absolute errors on the same clips, with its paired bootstrap interval.

    None for a single clip, and where the reference has so many clips without error that a resample has no ratio.
    """
    if len(error) < 2:
        return None
    means = bootstrap_means(np.stack([error, reference], 1), replicates, seed)
    if not (means[:, 1] > 0).all():
        return None
    return float(error.mean() / reference.mean()), interval(means[:, 0] / means[:, 1])


def verdict(low: float, high: float, margin: float) -> VerdictWord:
    """Non-inferior when the interval of the difference lies under the margin, inferior when it lies over it.

    Piaggio et al., Reporting of Noninferiority and Equivalence Randomized Trials (CONSORT), JAMA 308, 2012.
    """
    if high < margin:
        return "non-inferior"
    return "inferior" if low > margin else "inconclusive"
