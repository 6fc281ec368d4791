"""Any two variants of a run against each other, on the same clips and in the same rounds of latency."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from qray.errors import UsageError
from qray.judge.comparison import MIN_CLIPS
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.index import At
from qray.judge.ratio import ratio
from qray.judge.row import Row
from qray.judge.statistics import bootstrap_means, interval, mean_interval


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; the interval is None where the sample cannot carry one."""

    value: float
    low: float | None
    high: float | None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval, where there is one."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def point(at: At) -> str:
    """A (threads, batch) in words."""
    return f"{at[0]} thread{'s' if at[0] > 1 else ''}, batch {at[1]}"


def measured_points(evidence: Evidence) -> list[At]:
    """Every (threads, batch) at which the run has rows."""
    points = {row.point for variant in evidence.variants for row in variant.rows}
    return sorted(point for point in points if point is not None)


def choose_point(evidence: Evidence, threads: int | None = None, batch: int | None = None) -> At | None:
    """The (threads, batch) to compare at: the first of the run that agrees with what is asked for.

    Returns:
        None where the run measured nothing and nothing was asked for.

    Raises:
        UsageError: nothing was measured there; names what was.
    """
    points = measured_points(evidence)
    found = [p for p in points if threads in (None, p[0]) and batch in (None, p[1])]
    if found:
        return found[0]
    if threads is None and batch is None:
        return None
    words = " ".join(f"--{n} {v}" for n, v in (("threads", threads), ("batch", batch)) if v is not None)
    measured = "; ".join(map(point, points)) or "nothing"
    raise UsageError(f"{words}: not measured in this run, which measured {measured}")


class Pairs:
    """Paired comparisons within one run at one (threads, batch).

    All intervals are at 95 % and for one pair at a time: nothing is corrected for the number of pairs.
    """

    def __init__(self, evidence: Evidence, at: At | None) -> None:
        self.evidence, self.at = evidence, at
        self.variants = {v.name: v for v in evidence.variants}
        self.settings = evidence.study.verdict
        self._errors = {name: _absolute_errors(v) for name, v in self.variants.items()}
        self._replicates: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}
        calls = {name: variant.latency(at) for name, variant in self.variants.items()}
        self._calls = {name: latency for name, latency in calls.items() if latency is not None}

    def row(self, name: str) -> Row:
        """The variant's row at this (threads, batch), or its first where it has none there, without latency."""
        variant = self.variants[name]
        if self.at is None:
            return variant.row
        for row in variant.rows:
            if row.point == self.at:
                return row
        return replace(variant.row, latency_p50_ms=None, peak_rss_mb=None, threads=None, batch=None)

    def error(self, name: str, other: str) -> Estimate | None:
        """MAE of `name` less MAE of `other` on the clips that both predicted, with its paired bootstrap interval.

        Both means are taken over the same resamples (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
        chapter 8), so that what makes a clip hard for both cancels. None where they share no clip; no interval from
        fewer clips than carry one.
        """
        mine, theirs = self._errors[name], self._errors[other]
        if mine is None or theirs is None:
            return None
        common = mine.index.intersection(theirs.index)
        if len(common) == 0:
            return None
        delta = float(mine.loc[common].mean() - theirs.loc[common].mean())
        if len(common) < MIN_CLIPS:
            return Estimate(delta, None, None)
        clips = tuple(common)
        return Estimate(delta, *interval(self._means(name, clips) - self._means(other, clips), len(clips)))

    def _means(self, name: str, clips: tuple[str, ...]) -> np.ndarray:
        """Replicates of the MAE; the same seed and number of clips draw the same clips for every variant."""
        if (name, clips) not in self._replicates:
            errors = self._errors[name]
            assert errors is not None
            values = errors.loc[list(clips)].to_numpy()[:, None]
            means = bootstrap_means(values, self.settings.bootstrap, self.settings.seed)[:, 0]
            self._replicates[name, clips] = means
        return self._replicates[name, clips]

    def latency(self, name: str, other: str) -> Estimate | None:
        """Latency of `name` over latency of `other`, from the rounds in which both were timed (speed.ratio)."""
        if name not in self._calls or other not in self._calls:
            return None
        found = ratio(self._calls[name], self._calls[other])
        return None if found is None else Estimate(found.value, found.low, found.high)

    def p50(self, name: str) -> Estimate | None:
        """Median latency in ms with a t interval of the rounds' medians on the log scale, which holds the median.

        As in speed.ratio, the round is what is sampled. None where no latency was measured.
        """
        value = self.row(name).latency_p50_ms
        if value is None:
            return None
        blocks = [block for block in self._calls[name].blocks_ms if block] if name in self._calls else []
        if len(blocks) < 2:
            return Estimate(value, None, None)
        _, low, high = mean_interval(np.log([np.median(block) for block in blocks]))
        return Estimate(value, min(value, math.exp(low)), max(value, math.exp(high)))

    def size(self, name: str) -> int | None:
        """Bytes of the artifact as shipped."""
        return self.row(name).size_bytes


def _absolute_errors(variant: VariantEvidence) -> pd.Series | None:
    """Absolute error by clip, of the clips with a finite prediction."""
    if variant.clips is None:
        return None
    frame = variant.clips.set_index("clip")
    errors = (frame["prediction"] - frame["target"]).abs()
    errors = errors[np.isfinite(errors)]
    return errors if len(errors) and errors.index.is_unique else None
