"""Any two variants against each other: of one run, on the same clips and in the same rounds of latency; of two runs."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np

from qray.errors import UsageError
from qray.judge.clips import errors, shared, usable
from qray.judge.comparison import MIN_CLIPS
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.ratio import ratio
from qray.judge.row import Row
from qray.judge.statistics import Estimate, bootstrap_means, interval, mean_interval, paired_difference
from qray.point import Point
from qray.study_verdict import Verdict

#: Two runs are compared pairwise where at least this share of the smaller one's clips is common to both.
COMMON_SHARE = 0.5


def choose_point(
    evidence: Evidence, threads: int | None = None, batch: int | None = None, device: str | None = None
) -> Point | None:
    """The point to compare at: the first of the run that agrees with what is asked for.

    Returns:
        None where the run measured nothing and nothing was asked for.

    Raises:
        UsageError: nothing was measured there; names what was.
    """
    points = sorted({row.point for variant in evidence.variants for row in variant.rows if row.point is not None})
    asked = {"device": device, "threads": threads, "batch": batch}
    given = {name: value for name, value in asked.items() if value is not None}
    found = next((p for p in points if given.items() <= asdict(p).items()), None)
    if found is not None or not given:
        return found
    words = " ".join(f"--{name} {value}" for name, value in given.items())
    measured = "; ".join(map(str, points)) or "nothing"
    raise UsageError(f"{words}: not measured in this run, which measured {measured}")


class Pairs:
    """Paired comparisons within one run at one point.

    All intervals are at 95 % and for one pair at a time: nothing is corrected for the number of pairs.
    """

    def __init__(self, evidence: Evidence, at: Point | None) -> None:
        self.evidence, self.at = evidence, at
        self.variants = {v.name: v for v in evidence.variants}
        self.settings = evidence.study.verdict
        calls = {name: variant.latency(at) for name, variant in self.variants.items()}
        self._calls = {name: latency for name, latency in calls.items() if latency is not None}

    @property
    def reference(self) -> VariantEvidence:
        """FP32 eager of the point's device, else of the CPU: what speed is compared to."""
        found = self.evidence.reference_on(self.at.device) if self.at is not None else None
        return found or self.evidence.reference

    @property
    def there(self) -> list[VariantEvidence]:
        """The variants that are built for the point's device; without a point, all."""
        return [v for v in self.evidence.variants if self.at is None or v.device == self.at.device]

    def row(self, name: str) -> Row:
        """The variant's row at this point, or its first where it has none there, without latency."""
        variant = self.variants[name]
        if self.at is None:
            return variant.row
        for row in variant.rows:
            if row.point == self.at:
                return row
        return replace(variant.row, latency_p50_ms=None, peak_rss_mb=None, device=None, threads=None, batch=None)

    def error(self, name: str, other: str) -> Estimate | None:
        """MAE of `name` less MAE of `other` on the clips that both predicted, with its paired bootstrap interval.

        Both means are taken over the same resamples (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
        chapter 8), so that what makes a clip hard for both cancels. None where they share no clip; no interval from
        fewer clips than carry one.
        """
        mine, theirs = (usable(self.variants[one].predicted) for one in (name, other))
        if mine is None or theirs is None:
            return None
        mine, theirs = shared(mine, theirs)
        if not len(mine):
            return None
        return _paired(errors(mine), errors(theirs), self.settings)

    def latency(self, name: str, other: str) -> Estimate | None:
        """Latency of `name` over latency of `other`, from the rounds in which both were timed (speed.ratio)."""
        if name not in self._calls or other not in self._calls:
            return None
        return ratio(self._calls[name], self._calls[other])

    def p50(self, name: str) -> Estimate | None:
        """Median latency in ms with a t interval of the rounds' medians on the log scale, which holds the median.

        As in speed.ratio, the round is what is sampled. None where no latency was measured.
        """
        value = self.row(name).latency_p50_ms
        if value is None:
            return None
        blocks = [block for block in self._calls[name].blocks_ms if block] if name in self._calls else []
        if len(blocks) < 2:
            return Estimate(value)
        _, low, high = mean_interval(np.log([np.median(block) for block in blocks]))
        return Estimate(value, min(value, math.exp(low)), max(value, math.exp(high)))

    def size(self, name: str) -> int | None:
        """Bytes of the artifact as shipped."""
        return self.row(name).size_bytes


def compare_clips(a: VariantEvidence, b: VariantEvidence, settings: Verdict) -> tuple[Estimate | None, bool, int]:
    """MAE of `b` less MAE of `a`, which are of two runs; whether it is paired; and how many clips of the same name and
    target both predicted.

    Paired: bootstrap of the differences clip by clip (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 8). Else each run's clips are resampled by themselves (there, section 8.3: two samples), which is wider.
    The interval is None below 10 clips.
    """
    first, second = usable(a.predicted), usable(b.predicted)
    if first is None or second is None:
        return None, False, 0
    smaller, draws, seed = min(len(first), len(second)), settings.bootstrap, settings.seed
    common = shared(first, second)
    n = len(common[0])
    paired = n > 0 and n >= COMMON_SHARE * smaller
    one, other = map(errors, common if paired else (first, second))
    if paired:
        return _paired(other, one, settings), True, n
    difference = float(other.mean() - one.mean())
    if smaller < MIN_CLIPS:
        return Estimate(difference), False, n
    # Different seeds, because the same would pair clips that have nothing in common.
    means = bootstrap_means(other[:, None], draws, seed + 1)[:, 0] - bootstrap_means(one[:, None], draws, seed)[:, 0]
    return Estimate(difference, *interval(means, smaller)), False, n


def _paired(own: np.ndarray, other: np.ndarray, settings: Verdict) -> Estimate:
    """Difference of the means of float64 (n,) each, of the same clips; no interval from fewer than carry one."""
    if len(own) < MIN_CLIPS:
        return Estimate(float((own - other).mean()))
    value, bounds = paired_difference(own, other, settings.bootstrap, settings.seed)
    return Estimate(value, *bounds)
