"""How far two methods agree clip by clip: Bland-Altman, and decisions that turn at the study's thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qray.judge.statistics import LEVEL, check_clips, share_interval

#: Limits of agreement hold 95 % of normal differences.
LIMIT_Z = 1.96


@dataclass(frozen=True)
class BlandAltman:
    """Differences of two methods on n clips, in target units; intervals are 95 %.

    bias: the mean difference. lower, upper: limits of agreement, each with its interval. slope: of the difference on
    the mean of both, with its p-value; None where it means nothing (under three clips, or one method that says the
    same of every clip).
    """

    n: int
    bias: float
    bias_low: float | None
    bias_high: float | None
    sd: float | None
    lower: float | None
    lower_low: float | None
    lower_high: float | None
    upper: float | None
    upper_low: float | None
    upper_high: float | None
    slope: float | None
    slope_p: float | None


@dataclass(frozen=True)
class Reclassification:
    """Clips of n that a variant puts on another side of `threshold` than FP32 does; below is "under the threshold".

    up, down: clips that go from below to at or above it, and the reverse. share: both, of n, with its 95 % Wilson
    interval. sensitivity: share of clips labelled below that are predicted below; specificity: of those labelled at or
    above, predicted so; None where there is no such clip.
    """

    threshold: float
    n: int
    up: int
    down: int
    share: float
    share_low: float
    share_high: float
    sensitivity: float | None
    specificity: float | None
    reference_sensitivity: float | None
    reference_specificity: float | None


def bland_altman(first: np.ndarray, second: np.ndarray) -> BlandAltman:
    """Agreement of `first` with `second`: float64 (n,) each, of the same clips; differences are first - second.

    Bland & Altman, Measuring agreement in method comparison studies, Statistical Methods in Medical Research 8, 1999:
    limits are bias +- 1.96 s, with a standard error of s sqrt(1/n + 1.96^2 / (2 (n - 1))), and t(n - 1) for intervals.

    Raises:
        ValueError: no clip, or a value that is not finite.
    """
    from scipy import special

    check_clips(first, second)
    n, difference = len(first), first - second
    bias = float(difference.mean())
    if n < 2:
        return BlandAltman(n, bias, *[None] * 11)
    sd = float(difference.std(ddof=1))
    t = float(special.stdtrit(n - 1, (1 + LEVEL) / 2))
    own = t * sd / math.sqrt(n)
    limit = t * sd * math.sqrt(1 / n + LIMIT_Z**2 / (2 * (n - 1)))
    lower, upper = bias - LIMIT_Z * sd, bias + LIMIT_Z * sd
    slope = slope_p = None
    # Against a constant the difference is the mean, times -2: a perfect line that says nothing.
    if n > 2 and np.ptp(first) > 0 and np.ptp(second) > 0 and np.ptp(first + second) > 0:
        (spread, both), (_, own_spread) = np.cov((first + second) / 2, difference, bias=True)
        slope, rest = float(both / spread), float(own_spread - both**2 / spread)
        if sd > 0:
            error = math.sqrt(max(rest, 0.0) / spread / (n - 2))
            slope_p = 2 * float(special.stdtr(n - 2, -abs(slope) / error)) if error > 0 else 0.0
    return BlandAltman(
        n=n, bias=bias, bias_low=bias - own, bias_high=bias + own, sd=sd,
        lower=lower, lower_low=lower - limit, lower_high=lower + limit,
        upper=upper, upper_low=upper - limit, upper_high=upper + limit, slope=slope, slope_p=slope_p,
    )  # fmt: skip


def _share(hits: np.ndarray, of: np.ndarray) -> float | None:
    return float(hits[of].mean()) if of.any() else None


def reclassify(
    target: np.ndarray, predicted: np.ndarray, reference: np.ndarray, thresholds: Sequence[float]
) -> tuple[Reclassification, ...]:
    """Decisions of a variant and of FP32 at each threshold: float64 (n,) each, of the same clips, all finite.

    A threshold that leaves all labels on one side decides nothing in this study and is left out.
    """
    found = []
    for threshold in sorted(set(thresholds)):
        label, own, other = target < threshold, predicted < threshold, reference < threshold
        if label.all() or not label.any():
            continue
        up, down = int((other & ~own).sum()), int((own & ~other).sum())
        low, high = share_interval(up + down, len(target))
        found.append(Reclassification(
            threshold=threshold, n=len(target), up=up, down=down, share=(up + down) / len(target), share_low=low,
            share_high=high, sensitivity=_share(own, label), specificity=_share(~own, ~label),
            reference_sensitivity=_share(other, label), reference_specificity=_share(~other, ~label),
        ))  # fmt: skip
    return tuple(found)
