"""Which variants are worth a look: the Pareto front of error, latency and size, as far as the noise lets one see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

from qray.judge.evidence import Evidence
from qray.judge.pairwise import Pairs, choose_point
from qray.judge.statistics import Estimate
from qray.point import Point

Standing = Literal["better", "as good", "open", "worse"]
#: Where the interval of a ratio of latencies holds 1, the two count as equally fast if it stays within this factor.
#: Blocks of one variant on a quiet machine differ by some per cent, and nobody ships by less.
LATENCY_TIE = 1.05


@dataclass(frozen=True)
class Axis:
    """How one variant stands to another on one axis, and the figure that says so in words."""

    standing: Standing
    words: str


@dataclass(frozen=True)
class Place:
    """One variant's place.

    on_front: False if another dominates it or it breaks a guardrail, None if a figure is missing. dominated_by:
    all that dominate it, those on the front first. why: a sentence. error: difference of MAE to FP32, target units
    (0 for FP32 itself); latency_ms: median; size_bytes: as shipped.
    """

    name: str
    on_front: bool | None
    dominated_by: tuple[str, ...]
    why: str
    error: Estimate | None
    latency_ms: Estimate | None
    size_bytes: int | None


@dataclass(frozen=True)
class Front:
    """All finished variants of a run at one point, and what the front as a whole cannot carry."""

    at: Point | None
    places: tuple[Place, ...]
    notes: tuple[str, ...] = ()


def compare_error(difference: Estimate | None, margin: float | None) -> Axis:
    """Stand on error: as good where no difference is shown and the loss is under the declared margin.

    That is non-inferiority (see statistics.verdict) between two variants; without it, "no difference shown" on few
    clips would pass for "no difference".
    """
    if difference is None or difference.low is None or difference.high is None:
        return Axis("open", "MAE not compared")
    words = f"MAE {difference:+.2f}"
    if difference.high < 0:
        return Axis("better", words)
    if difference.low > 0:
        return Axis("worse", words)
    same = difference.low == difference.high == 0
    return Axis("as good" if same or (margin is not None and difference.high < margin) else "open", words)


def compare_latency(ratio: Estimate | None) -> Axis:
    """Stand on latency, from the ratio of own latency to the other's."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return Axis("open", "latency not compared")
    factor, low, high, word = ratio.value, ratio.low, ratio.high, "slower"
    if factor < 1:
        factor, low, high, word = 1 / factor, 1 / high, 1 / low, "faster"
    words = f"{factor:.2f}x {word} ({low:.2f} to {high:.2f})"
    if ratio.high < 1:
        return Axis("better", words)
    if ratio.low > 1:
        return Axis("worse", words)
    return Axis("as good" if ratio.high <= LATENCY_TIE else "open", words)


def compare_size(own: int | None, other: int | None) -> Axis:
    """Stand on size, which has no noise."""
    if not own or not other:
        return Axis("open", "size not compared")
    if own == other:
        return Axis("as good", "the same size")
    share = own / other - 1
    return Axis("better" if own < other else "worse", f"{abs(share):.1%} {'smaller' if own < other else 'larger'}")


def standing(pairs: Pairs, name: str, other: str, margin: float | None) -> dict[str, Axis]:
    """How `name` stands to `other` on every axis: error, latency and size."""
    return {
        "error": compare_error(pairs.error(name, other), margin),
        "latency": compare_latency(pairs.latency(name, other)),
        "size": compare_size(pairs.size(name), pairs.size(other)),
    }


def dominates(axes: Mapping[str, Axis]) -> bool:
    """Whether the one is at least as good in everything and, with the intervals separated, better in something."""
    standings = [axis.standing for axis in axes.values()]
    return "better" in standings and all(s in ("better", "as good") for s in standings)


def pareto_front(evidence: Evidence, at: Point | None = None) -> Front:
    """The front over error, latency and size (Pareto dominance as in Deb, Multi-Objective Optimization, 2001, 2.4).

    A variant is dominated only by one that is at least as good on all three axes and better on at least one with
    the intervals separated: errors compared clip by clip, latencies round by round. Intervals are per pair, at 95 %.
    One whose mean is non-inferior and that breaks a guardrail is on no front and dominates nothing: its mean hides what
    is wrong with it.
    at: by default the first point that the run measured; of the variants that are built for its device.
    """
    at = at or choose_point(evidence)
    pairs, margin = Pairs(evidence, at), evidence.study.verdict.margin
    names = [variant.name for variant in pairs.there if variant.status == "ok"]
    missing = {name: lacks for name in names if (lacks := _missing(pairs, name))}
    refused = {v.name: why for v in evidence.variants if v.comparison is not None and (why := v.comparison.refused)}
    placed = [name for name in names if name not in missing and name not in refused]
    axes = {(one, other): standing(pairs, one, other, margin) for one, other in permutations(placed, 2)}
    dominators = {
        name: [other for other in placed if other != name and dominates(axes[other, name])] for name in placed
    }
    front = _settle(dominators)
    places = []
    for name in names:
        by: tuple[str, ...] = ()
        if name in missing:
            why = f"not placed: {' and '.join(missing[name])} not known"
        elif name in refused:
            why = f"not to be shipped: {refused[name]}"
        elif name in front:
            why = _why_on_front(name, placed, axes, pairs)
        else:
            by = tuple(sorted(dominators[name], key=lambda other: other not in front))
            why = f"{by[0]} is at least as good in everything: {_words(axes[by[0], name])}"
        on_front = None if name in missing else name in front
        places.append(
            Place(name, on_front, by, why, _to_reference(pairs, name), pairs.p50(name), pairs.size(name))
        )  # fmt: skip
    once = any(place.latency_ms is not None and place.latency_ms.bounds is None for place in places)
    notes = ("some latencies have no interval, because they were taken in one round",) if once else ()
    return Front(at, tuple(places), notes)


def _missing(pairs: Pairs, name: str) -> list[str]:
    known = {"error": pairs.error(name, name), "latency": pairs.p50(name), "size": pairs.size(name)}
    return [axis for axis, value in known.items() if value is None]


def _settle(dominators: Mapping[str, Sequence[str]]) -> set[str]:
    """The front: what nothing dominates.

    As good as is not transitive, so that noise can close a circle of dominance that nothing on the front leads to;
    a circle proves nothing against its members, and they stay.
    """
    front = {name for name, others in dominators.items() if not others}
    reached = set(front)
    while True:
        more = {name for name, others in dominators.items() if name not in reached and reached.intersection(others)}
        if not more:
            return front | (dominators.keys() - reached)
        reached |= more


def _why_on_front(
    name: str, placed: Sequence[str], axes: Mapping[tuple[str, str], Mapping[str, Axis]], pairs: Pairs
) -> str:
    best = []
    others = [other for other in placed if other != name]
    for axis, word in (("error", "the lowest error"), ("latency", "the fastest"), ("size", "the smallest")):
        if others and all(axes[name, other][axis].standing == "better" for other in others):
            best.append(word)
    unsettled = [
        other for other in others
        if any(a.standing == "open" for a in axes[other, name].values())
        and all(a.standing != "worse" for a in axes[other, name].values())
    ]  # fmt: skip
    words = f"on the front: {', '.join(best)}" if best else "on the front: nothing is as good in everything"
    if unsettled:
        words += f"; not settled against {', '.join(unsettled)}"
    return words


def _words(axes: Mapping[str, Axis]) -> str:
    return ", ".join(axes[axis].words for axis in ("latency", "size", "error"))


def _to_reference(pairs: Pairs, name: str) -> Estimate | None:
    reference = pairs.evidence.reference
    if name == reference.name:
        return Estimate(0.0, 0.0, 0.0)
    compared = pairs.variants[name].comparison
    if compared is not None:
        return compared.difference
    return pairs.error(name, reference.name)
