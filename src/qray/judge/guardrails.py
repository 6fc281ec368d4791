"""What a mean hides and what forbids shipping all the same: a class that lost, clips that moved, saturation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qray.judge import saturation as ties
from qray.judge.places import LEAST_MOVED, Group, classes, places
from qray.judge.statistics import LEVEL, mean_interval, rank_sum, share_interval
from qray.study_verdict import Verdict

#: A class has lost where its MAE grew by more than the limit, and the interval leaves out this share of it. At 0.25 it
#: refused up to 1.5 % of simulated honest variants with 4-bit noise, at 0.5 up to 0.3 %. The price: a class shifted by
#: twice the margin is found by its MAE alone in 11 %, by its shift in 86 %
#: (tests/unit/judge/test_guardrail_simulations.py).
LOST = 0.5
#: Clips of one place move too far where they do so this many times as far as the others on average, and ...
LOCAL = 2.0
#: ... chance puts as many of the farthest moves among them less often than this (rank-sum test). With both, none of the
#: simulated honest variants with 8-bit noise is refused, and up to 1.3 % with 4-bit noise.
LOCAL_ALPHA = 0.0005
#: Guardrails on ties at the lowest and at the highest prediction.
TIED = ("tied_low", "tied_high")


@dataclass(frozen=True)
class Guardrail:
    """One figure that must hold whatever the mean says.

    name: of its key in the study or its column. value, low, high: the figure with its 95 % interval, where it has one.
    limit: what it is held against, in the units of value. ok: whether it holds; None where these clips cannot tell.
    words: a sentence without its full stop.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    limit: float | None
    ok: bool | None
    words: str


def guard(target: np.ndarray, predicted: np.ndarray, reference: np.ndarray, settings: Verdict) -> tuple[Guardrail, ...]:
    """All guardrails of a variant: float64 (n,) each, in target units, of the same clips, all finite."""
    distance = np.abs(predicted - reference)
    found = classes(target, settings)
    return (
        worst_class(target, predicted, reference, found, settings),
        class_shift(target, predicted, reference, found, settings),
        local_move(distance, places(target, reference, settings), settings),
        moved_share(distance, settings),
        tail(distance, settings),
        *saturation(predicted, reference, settings),
    )


def sentences(broken: Sequence[Guardrail]) -> str | None:
    """What is broken, in a line; None where nothing is."""
    return "; ".join(guardrail.words for guardrail in broken) or None


def columns(guardrails: Sequence[Guardrail]) -> dict[str, float | int | str | None]:
    """The columns of results.parquet that come from guardrails; empty where there are none."""
    found = {guardrail.name: guardrail for guardrail in guardrails}
    if not found:
        return {}
    worst, far = found["worst_class"], found["tail"]
    return {
        "guardrails": sentences([guardrail for guardrail in guardrails if guardrail.ok is False]),
        "worst_class_delta": worst.value, "worst_class_low": worst.low, "worst_class_high": worst.high,
        "class_shift": found["class_shift"].value, "local_move": found["local_move"].value, "tail_moved": far.value,
        "tail_moved_high": far.high, **{name: int(found[name].value or 0) for name in TIED},
        "distinct_share": found["distinct_share"].value,
    }  # fmt: skip


def worst_class(
    target: np.ndarray, predicted: np.ndarray, reference: np.ndarray, groups: Sequence[Group], settings: Verdict
) -> Guardrail:
    """The class whose MAE grew most.

    Broken where a class has evidently lost: its MAE grew by more than the limit, with an interval wholly above 0, which
    holds for all classes at once (Bonferroni). It holds where every class is shown to be non-inferior at the limit; a
    class that is too small for either condemns nobody.
    """
    name, limit, level = "worst_class", settings.margin * settings.guardrails.class_margin, _level(groups)
    if not groups:
        return Guardrail(name, None, None, None, limit, None, _no_class(target, settings))
    change = np.abs(predicted - target) - np.abs(reference - target)
    found = [(*mean_interval(change[group.clips], level), group) for group in groups]
    lost = [one for one in found if one[0] > limit and one[1] > LOST * limit]
    value, low, high, group = max(lost or found, key=lambda one: one[0])
    words = f"the MAE of {group.name} changes by {_span(value, low, high)}"
    ok = False if lost else True if all(one[2] < limit for one in found) else None
    return _of_class(name, (value, low, high), limit, ok, words, "whether it is within {} is not settled")


def class_shift(
    target: np.ndarray, predicted: np.ndarray, reference: np.ndarray, groups: Sequence[Group], settings: Verdict
) -> Guardrail:
    """The class that moved most to one side.

    What shifts a class as a whole may cost it as much, and whether that shows in its MAE is up to FP32's own errors,
    which hide it. Broken where the interval of the mean move (Bonferroni) lies wholly beyond the limit, and the class
    is not shown to have become better by it, as one may that was trained anew.
    """
    name, limit, level = "class_shift", settings.margin * settings.guardrails.class_margin, _level(groups)
    if not groups:
        return Guardrail(name, None, None, None, limit, None, _no_class(target, settings))
    moved, change = predicted - reference, np.abs(predicted - target) - np.abs(reference - target)
    found = [(*mean_interval(moved[group.clips], level), group) for group in groups]
    shifted = [
        one for one in found
        if max(one[1], -one[2]) > limit and not mean_interval(change[one[3].clips])[2] < 0
    ]  # fmt: skip
    value, low, high, group = max(shifted or found, key=lambda one: abs(one[0]))
    words = f"{group.name} move by {_span(value, low, high)} on average"
    ok = False if shifted else True if all(max(-one[1], one[2]) < limit for one in found) else None
    return _of_class(name, (value, low, high), limit, ok, words, "not evidently more than {}, or better so")


def _of_class(
    name: str, found: tuple[float, float, float], limit: float, ok: bool | None, words: str, unsettled: str
) -> Guardrail:
    least = f"{limit:.3g}"
    ending = {True: f", within {least}", False: f", and {least} is put up with", None: f": {unsettled.format(least)}"}
    return Guardrail(name, *found, limit, ok, f"{words}{ending[ok]}")


def local_move(distance: np.ndarray, groups: Sequence[Group], settings: Verdict) -> Guardrail:
    """Where clips move farthest, to either side.

    Noise is everywhere, and a fault of one class or one end is not: broken where clips that belong together move by
    more than the limit on average, LOCAL times as far as the others, and so many of the farthest that chance does not
    do it (`rank_sum`).
    """
    name, limit = "local_move", settings.margin * settings.guardrails.local_move
    if not groups:
        return Guardrail(name, None, None, None, limit, None, _no_class(distance, settings))
    found = [(*mean_interval(distance[group.clips]), float(distance[~group.clips].mean()), group) for group in groups]
    far = [one for one in found if one[0] > max(limit, LOCAL * one[3]) and _among_the_farthest(distance, one[4])]
    value, low, high, others, group = max(far or found, key=lambda one: one[0])
    words = f"{group.name} move by {value:.3g} on average (95 % {low:.3g} to {high:.3g}), the others by {others:.3g}"
    return Guardrail(name, value, low, high, limit, not far, f"{words}; {limit:.3g} is put up with" if far else words)


def _among_the_farthest(distance: np.ndarray, group: Group) -> bool:
    return rank_sum(distance[group.clips], distance[~group.clips]) < LOCAL_ALPHA


def moved_share(distance: np.ndarray, settings: Verdict) -> Guardrail:
    """The share of clips that move by more than `moved`, or by the margin where that is more.

    Broken where the upper end of its Wilson interval reaches the limit and at least LEAST_MOVED clips moved.
    """
    limit, far = settings.guardrails.moved_share, max(settings.moved, settings.margin)
    n, gone = len(distance), int((distance > far).sum())
    low, high = share_interval(gone, n)
    words = f"{gone} of {n} clips move by more than {far:.4g} (95 % {low:.1%} to {high:.1%})"
    ok = True if high < limit else False if gone >= LEAST_MOVED else None
    but = {True: "under", False: "not shown to be under", None: "too few clips to show under"}[ok]
    return Guardrail("moved_share", gone / n, low, high, limit, ok, f"{words}, {but} {limit:.1%}")


def tail(distance: np.ndarray, settings: Verdict) -> Guardrail:
    """A high quantile of how far predictions are from FP32's, with its interval by order statistics.

    The k-th of n sorted distances is at or above the quantile q with the chance that a binomial of n and q is under k
    (Conover, Practical Nonparametric Statistics, 1999, section 3.2). Broken where the interval's upper end, or the
    LEAST_MOVED-th largest where n is too small for one, is over the limit, and at least LEAST_MOVED clips are.
    """
    from scipy import special

    q, far = settings.guardrails.tail_quantile, max(settings.moved, settings.margin)
    limit, n, ordered = settings.guardrails.tail_moved * far, len(distance), np.sort(distance)
    value = float(np.quantile(distance, q))
    # 1-based ranks, each of which errs in at most 2.5 %.
    below, above = np.searchsorted(special.bdtr(np.arange(n + 1), n, q), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    low = float(ordered[below - 1]) if below >= 1 else None
    high = float(ordered[above]) if above < n else None
    gone = int((distance > limit).sum())
    words = f"{q:.0%} of the clips move by at most {value:.3g}"
    if high is None:
        words += f" (no upper bound from {n} clips), {gone} by more than {limit:.4g}"
        return Guardrail("tail", value, low, None, limit, False if gone >= LEAST_MOVED else None, words)
    words += f" (upper 95 % bound {high:.3g}), {gone} by more than {limit:.4g}"
    return Guardrail("tail", value, low, high, limit, high < limit or gone < LEAST_MOVED, words)


def saturation(predicted: np.ndarray, reference: np.ndarray, settings: Verdict) -> tuple[Guardrail, ...]:
    """Ties at the lowest and at the highest prediction, and how many distinct ones there are beside FP32's.

    Only ties of clips that FP32 tells apart count; those of a variant whose predictions all are bfloat16 or float16
    numbers only where rounding is an unlikely cause.
    """
    n, limits, span = len(predicted), settings.guardrails, float(np.ptp(reference)) or 1.0
    bits = ties.narrow_bits(predicted)
    found = []
    for name, sign, word in zip(TIED, (1.0, -1.0), ("lowest", "highest"), strict=True):
        own, other = sign * predicted, sign * reference
        tied = ties.ties_at_the_bottom(own, other, span)
        words = f"the {word} prediction, {sign * own.min():.4g}, is that of {tied} clip{'s' * (tied > 1)}"
        ok = tied <= limits.tied
        if tied > 1:
            there = reference[own <= own.min() + ties.SAME * span]
            words += f", for which FP32 says {there.min():.4g} to {there.max():.4g}"
        if not ok and bits is not None:
            ok = ties.explained_by_rounding(own, other, span, bits, tied, settings.seed)
            words += f"; rounding to {bits} bits {'explains' if ok else 'does not explain'} it"
        found.append(Guardrail(name, float(tied), None, None, float(limits.tied), ok, words))
    count = ties.distinct(predicted, span)
    whole = ties.distinct(ties.rounded(reference, bits) if bits is not None else reference, span)
    words = f"{count} of {n} predictions are distinct, {whole} of FP32's{f' in {bits} bits' if bits else ''}"
    held = count >= limits.distinct_share * whole
    return (*found, Guardrail("distinct_share", count / whole, None, None, limits.distinct_share, held, words))


def _level(groups: Sequence[Group]) -> float:
    return 1 - (1 - LEVEL) / max(len(groups), 1)


def _no_class(clips: np.ndarray, settings: Verdict) -> str:
    return f"{len(clips)} clips make no two classes of {settings.guardrails.min_class_clips}"


def _span(value: float, low: float, high: float) -> str:
    return f"{value:+.3g} (95 % {low:+.3g} to {high:+.3g})"
