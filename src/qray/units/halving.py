"""Which trials of a sweep go on: successive halving by rungs, a pure function of what the trials have reached.

Jamieson & Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS 2016: all trials
train to a rung, the better part goes on to the next. Its asynchronous form (ASHA; Li et al., A System for Massively
Parallel Hyperparameter Tuning, MLSys 2020) waits for nobody, but what it stops depends on which trial reports first:
the same sweep twice would leave other trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

#: VAL MAE of trial i after so many epochs; infinity where it has diverged, None where it has not come that far.
Score = Callable[[int, int], float | None]


@dataclass(frozen=True)
class Standing:
    """What is known of a trial: it has to train up to `epochs` ("run"), has done so and waits for the others of its
    rung ("wait"), or stays there: with all its epochs ("whole"), "cut", or "diverged"."""

    state: Literal["run", "wait", "whole", "cut", "diverged"]
    epochs: int


def rungs(longest: int, factor: int) -> tuple[int, ...]:
    """Epochs after which trials are compared: 1, factor, factor^2, ... below the longest trial's, and those."""
    inner = [factor**k for k in range(longest.bit_length()) if factor**k < longest]
    return (*inner, longest)


def standings(settings: Sequence[dict[str, Any]], score: Score, factor: int) -> list[Standing]:
    """Where each trial stands, by its settings ("weight_bits", "epochs"); widths are not compared with each other.

    Of n trials at a rung the best ceil(n / factor) go on; a trial at its own last epoch is whole, whatever its rank.
    """
    found: dict[int, Standing] = {}
    for width in {s["weight_bits"] for s in settings}:
        found |= _of_width([i for i, s in enumerate(settings) if s["weight_bits"] == width], settings, score, factor)
    return [found[i] for i in range(len(settings))]


def _of_width(
    alive: list[int], settings: Sequence[dict[str, Any]], score: Score, factor: int
) -> dict[int, Standing]:  # fmt: skip
    found: dict[int, Standing] = {}
    for rung in rungs(max(settings[i]["epochs"] for i in alive), factor):
        goal = {i: min(rung, settings[i]["epochs"]) for i in alive}
        scores = {i: score(i, goal[i]) for i in alive}
        known = {i: value for i, value in scores.items() if value is not None}
        for i in known:
            if math.isinf(known[i]):
                found[i] = Standing("diverged", goal[i])
            elif goal[i] == settings[i]["epochs"]:
                found[i] = Standing("whole", goal[i])
        if len(known) < len(alive):
            rest = {i: Standing("wait" if i in known else "run", goal[i]) for i in alive if i not in found}
            return found | rest
        best = sorted(alive, key=lambda i: (known[i], i))[: math.ceil(len(alive) / factor)]
        found |= {i: Standing("cut", goal[i]) for i in alive if i not in best and i not in found}
        alive = [i for i in best if i not in found]
        if not alive:
            break
    return found
