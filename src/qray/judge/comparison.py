"""A variant against FP32 on the same clips: difference, verdict, equivalence, and what would settle it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qray.judge.guardrails import Guardrail, guard, sentences
from qray.judge.statistics import (
    LEVEL,
    Estimate,
    VerdictWord,
    bootstrap_means,
    check_clips,
    interval,
    share_interval,
    tail_probability,
)
from qray.judge.statistics import verdict as verdict_of
from qray.study_verdict import Verdict

#: Error of each one-sided claim: half of what the two-sided interval leaves out.
ONE_SIDED = (1 - LEVEL) / 2
#: Error of the equivalence test, whose two one-sided tests belong to a 90 % interval (Schuirmann 1987).
EQUIVALENCE_ALPHA = 0.05
#: Chance of settling it that `clips_to_settle` buys.
POWER = 0.8
#: From here on the interval held the truth in at least 0.90 of the simulated studies, whatever the shape of the
#: differences; with 5 clips in 0.86 where they are skewed (tests/unit/judge/test_coverage.py).
MIN_CLIPS = 10


@dataclass(frozen=True)
class Comparison:
    """Mean absolute error of a variant minus FP32's, on n clips that both predicted; target units.

    delta_low, delta_high: 95 % paired bootstrap interval; None below two clips. verdict: by the interval and the
    margin, None where the data cannot carry one (notes say why). p_noninferior: one-sided, of a difference of at least
    the margin; below 0.025 exactly where the verdict is non-inferior. p_holm, verdict_holm: the same, adjusted for the
    number of variants compared in the study (`adjust`). equivalent: the difference is within plus and minus the margin
    (TOST at 0.05), with p_equivalent. clips_to_settle: clips in all that would settle an inconclusive verdict.
    moved_share, moved_low, moved_high: share of clips whose prediction is more than `moved` away from FP32's, with its
    95 % Wilson interval; max_moved: the largest such distance. guardrails: what must hold beside the mean; none where
    the data cannot carry a verdict.
    """

    n: int
    margin: float
    delta: float
    moved: float
    moved_share: float
    moved_low: float
    moved_high: float
    max_moved: float
    delta_low: float | None = None
    delta_high: float | None = None
    verdict: VerdictWord | None = None
    p_noninferior: float | None = None
    p_inferior: float | None = None
    p_holm: float | None = None
    verdict_holm: VerdictWord | None = None
    equivalent: bool | None = None
    p_equivalent: float | None = None
    clips_to_settle: int | None = None
    notes: tuple[str, ...] = ()
    guardrails: tuple[Guardrail, ...] = ()

    @property
    def difference(self) -> Estimate:
        """`delta` with its interval."""
        return Estimate(self.delta, self.delta_low, self.delta_high)

    def verdict_at(self, margin: float | None) -> VerdictWord | None:
        """The verdict by another margin (None: the declared one); none by one is none by any."""
        if margin is None or self.verdict is None or self.delta_low is None or self.delta_high is None:
            return self.verdict
        return verdict_of(self.delta_low, self.delta_high, margin)

    @property
    def broken(self) -> tuple[Guardrail, ...]:
        """The guardrails that do not hold: with any, the variant is not to be shipped, whatever its verdict."""
        return tuple(guardrail for guardrail in self.guardrails if guardrail.ok is False)

    @property
    def refused(self) -> str | None:
        """Why a variant is not to be shipped whose mean alone would let it be, a sentence; else None."""
        return sentences(self.broken) if self.verdict == "non-inferior" else None


def compare(target: np.ndarray, predicted: np.ndarray, reference: np.ndarray, settings: Verdict) -> Comparison:
    """Compare a variant with FP32: float64 (n,) each, in target units, of the same clips in the same order.

    Raises:
        ValueError: no clip, or a prediction that is not finite.
    """
    check_clips(target, predicted, reference)
    n, difference = len(target), np.abs(predicted - target) - np.abs(reference - target)
    distance = np.abs(predicted - reference)
    gone = int((distance > settings.moved).sum())
    found = Comparison(
        n, settings.margin, float(difference.mean()), settings.moved, gone / n, *share_interval(gone, n),
        float(distance.max()),
    )  # fmt: skip
    if n < 2:
        return replace(found, notes=("one clip: it tells nothing of how clips differ, so there is no verdict",))
    means = bootstrap_means(difference[:, None], settings.bootstrap, settings.seed)[:, 0]
    delta_low, delta_high = interval(means, n)
    found = replace(found, delta_low=delta_low, delta_high=delta_high)
    reason = _no_verdict(difference, distance, predicted, reference, target)
    if reason is not None:
        return replace(found, notes=(reason,))
    word = verdict_of(delta_low, delta_high, settings.margin)
    p_equivalent = tost(difference, settings.margin)
    return replace(
        found, verdict=word, p_noninferior=tail_probability(means, settings.margin, n, above=True),
        p_inferior=tail_probability(means, settings.margin, n, above=False), p_equivalent=p_equivalent,
        equivalent=p_equivalent < EQUIVALENCE_ALPHA,
        clips_to_settle=clips_to_settle(difference, settings.margin) if word == "inconclusive" else None,
        guardrails=guard(target, predicted, reference, settings),
    )  # fmt: skip


def _no_verdict(
    difference: np.ndarray, distance: np.ndarray, predicted: np.ndarray, reference: np.ndarray, target: np.ndarray
) -> str | None:
    """Why these data cannot carry a verdict, or None."""
    n = len(difference)
    if n < MIN_CLIPS:
        return f"{n} clips: an interval from fewer than {MIN_CLIPS} is too often wrong to carry a verdict"
    if np.ptp(reference) == 0 and np.ptp(target) > 0:
        return (
            f"FP32 predicts {reference[0]:g} for every clip: being as good as a model that learned nothing is no merit"
        )
    if distance.max() > 0 and np.ptp(difference) <= 1e-9 * max(1.0, float(np.abs(difference).max())):
        return (
            f"the error changes by exactly {difference.mean():+.3g} on every clip: differences that do not vary give "
            "no interval, and point to a fault in the predictions"
        )
    return None


def tost(difference: np.ndarray, margin: float) -> float:
    """p of the two one-sided paired t-tests that the mean difference lies beyond plus or minus `margin`.

    Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987: the larger of both. Differences that are all zero give 0.
    """
    from scipy import special

    n, over = len(difference), abs(float(difference.mean())) - margin
    error = float(difference.std(ddof=1)) / math.sqrt(n)
    return float(special.stdtr(n - 1, over / error)) if error > 0 else float(over >= 0)


def clips_to_settle(difference: np.ndarray, margin: float) -> int | None:
    """Clips in all at which the interval would leave the margin to one side with a chance of 80 %.

    n = ((z(0.975) + z(0.8)) s / (margin - mean))^2, the sample size of a paired comparison (Julious, Statistics in
    Medicine 23, 2004, section 4), taking the observed mean and standard deviation s for true. None where the mean is
    the margin itself: no number would do.
    """
    from scipy import special

    gap = margin - float(difference.mean())
    if gap == 0:
        return None
    z = special.ndtri(1 - ONE_SIDED) + special.ndtri(POWER)
    needed = (z * float(difference.std(ddof=1)) / gap) ** 2
    return max(math.ceil(needed), len(difference) + 1) if math.isfinite(needed) else None


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjusted p-values, in the order given: Holm, Scandinavian Journal of Statistics 6, 1979."""
    adjusted, order = np.empty(len(p)), np.argsort(p, kind="stable")
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.arange(len(p), 0, -1) * np.sort(p)))
    return adjusted


def adjust(comparisons: Sequence[Comparison | None]) -> list[Comparison | None]:
    """Fill p_holm and verdict_holm over all variants of a study; those without a verdict are not counted.

    The claims "non-inferior" and "inferior" are two families: each is right for all variants with 97.5 %.
    """
    found = list(comparisons)
    tested = {at: one for at, one in enumerate(found) if one is not None and one.verdict is not None}
    fit, unfit = (holm([getattr(one, p) for one in tested.values()]) for p in ("p_noninferior", "p_inferior"))
    for (at, one), p_fit, p_unfit in zip(tested.items(), fit, unfit, strict=True):
        unsettled: VerdictWord = "inferior" if p_unfit < ONE_SIDED else "inconclusive"
        word: VerdictWord = "non-inferior" if p_fit < ONE_SIDED else unsettled
        found[at] = replace(one, p_holm=float(p_fit), verdict_holm=word)
    return found
