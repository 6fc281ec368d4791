"""Which layers mixed precision tries to keep in FP32: the most harmful for their cost first, as many as it takes.

Keeping layers in FP32 can only be judged by what is deployed, and every trial of that is a build and a pass over VAL.
So the order of the layers is taken from the sensitivity analysis, and only how many of them is searched for; where to
look, from what the errors of the layers add up to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Layers by name; the order is part of which mix it is.
Kept = tuple[str, ...]
#: The second guess of a round allows for an error twice that small.
SPARE_DB = 3.0


@dataclass(frozen=True)
class Ranked:
    """A layer that can be kept in FP32. harm: squared error of the features that its quantization alone makes, over
    their square. cost: what keeping it is taken to cost."""

    name: str
    harm: float
    cost: float


@dataclass(frozen=True)
class Tried:
    """A mix on VAL. excess: the upper end of its loss of MAE over what is put up with; None where that is not known."""

    kept: Kept
    holds: bool
    excess: float | None = None


def ranking(record: Mapping[str, Any], unweighted: bool) -> list[Ranked]:
    """Layers of a sensitivity record that can be kept in FP32, those first that give most for what they cost.
    unweighted: additions and pools, which multiply nothing, among them.

    What a layer costs in FP32 is half its multiply-accumulates and half that it is one more: each leaves INT8 and comes
    back. By multiply-accumulates alone the first would be those that are next to nothing in either respect.
    """
    able = [layer for layer in record["layers"] if unweighted or layer["macs"]]
    total = sum(layer["macs"] for layer in able)
    found = []
    for layer in able:
        noise = layer["alone"]["sqnr_db"]
        harm = 10 ** (-noise / 10) if noise is not None else 0.0
        found.append(Ranked(layer["layer"], harm, layer["macs"] / total + 1 / len(able)))
    return sorted(found, key=lambda layer: -layer.harm / layer.cost)


def next_round(layers: Sequence[Ranked], tried: Sequence[Tried], budget: int) -> list[Kept]:
    """The mixes to try next, side by side; none where the search is over. A function of what was tried, so that a
    search that was killed goes on.

    First none is kept. Until some number of the first layers holds, two are tried: that at which the errors of the
    layers left in INT8 add up to little enough, by how much the last trial exceeded, and twice as many or `SPARE_DB`
    better; then two that divide what is left of the numbers in three. At last those layers are left out of the least
    number that holds which harm less together than the one that it could not do without.

    budget: mixes that may be tried in all.
    """
    names, outcome = [layer.name for layer in layers], {one.kept: one for one in tried}
    left = budget - len(tried)
    if () not in outcome:
        return [()]
    if outcome[()].holds:
        return []
    prefixes = {n: outcome[kept] for n in range(len(names)) if (kept := tuple(names[:n])) in outcome}
    high = min((n for n, one in prefixes.items() if one.holds), default=len(names))
    low = max(n for n, one in prefixes.items() if n < high)
    if high - low > 1:
        guess = _guess(layers, low, prefixes[low].excess) if high == len(names) else _thirds(low, high)
        sizes = sorted({min(max(n, low + 1), high - 1) for n in guess})
        return [tuple(names[:n]) for n in sizes][:left]
    if high == len(names):
        return []
    return [kept for kept in _leaner(layers[:high]) if kept not in outcome][:left]


def sqnr_db(layers: Sequence[Ranked], kept: int) -> float:
    """The features' SQNR with the first layers in FP32, if errors of layers add up, as independent ones do. Those
    that cannot be kept are left out: how much of their error stays is the engine's affair."""
    noise = sum(layer.harm for layer in layers[kept:])
    return -10 * math.log10(noise) if noise > 0 else math.inf


def _guess(layers: Sequence[Ranked], low: int, excess: float | None) -> tuple[int, int]:
    """Moves of predictions, and with them the interval, are taken to shrink as the square root of the error."""
    target = sqnr_db(layers, low) + 20 * math.log10(max(excess or 1.0, 1.0))

    def least(wanted: float) -> int:
        return next((n for n in range(low, len(layers)) if sqnr_db(layers, n) >= wanted), len(layers))

    return least(target), max(2 * low, least(target + SPARE_DB))


def _thirds(low: int, high: int) -> tuple[int, int]:
    return low + round((high - low) / 3), low + round(2 * (high - low) / 3)


def _leaner(kept: Sequence[Ranked]) -> list[Kept]:
    """Without as many layers as harm, all together, less than the last, and less than half of that."""
    *others, last = kept
    found: dict[Kept, None] = {}
    for share in (1.0, 0.5):
        left_out, harm = set[str](), 0.0
        for layer in sorted(others, key=lambda layer: layer.harm):
            harm += layer.harm
            if harm >= share * last.harm:
                break
            left_out.add(layer.name)
        if left_out:
            found[tuple(layer.name for layer in kept if layer.name not in left_out)] = None
    return list(found)
