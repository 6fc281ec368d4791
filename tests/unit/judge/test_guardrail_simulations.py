"""Simulated studies whose truth is known: what each guardrail detects, and how often honest variants are refused.

FP32 errs by 4 EF points (one standard deviation), the margin is 1, and the limits are the defaults unless it says so.

Refused of 400 honest studies each, of 30, 60, 100, 200 and 300 clips: noise of 0.2 or 0.6 points, t(3) noise of scale
0.3, predictions rounded to bfloat16 with noise of 0 or 0.3 points: none; t(3) of scale 0.5: 0 to 1.0 %; noise of 1.5
points (4-bit weights): 0 to 1.3 %; of 1.8 points: 0.3 to 2.8 %.

Found, at noise of 0.3 points: 2, 3 or 5 clips clamped, of 30 or of 300: all of 100; the clips labelled under 35 shifted
by 1.0 points: 3 % of 100 studies of 300 clips; by 1.5: 99 % of 200 studies of 300 clips, 98 % of 200 clips, 79 % of 100
clips, 54 % of 60, where fewer than three clips are so labelled in many studies; by 2.0: 100 % of 300 clips.

Measured with local_move at 1.0 instead of 1.25, and so a little better than now, in 60 studies of 300 clips: 5, 10 and
15 clips dealt anew at an end found in 16 to 53 %, 75 to 100 % and 100 %; at noise of 1.5 points in 5 to 23 %, 48 to
75 % and 75 to 98 %; there a shift of those under 35 by 1.5 points in 13 %, by 3 in 93 %.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.doctored_runs import Change, bfloat16, clamped, echo, heavy, noise, shifted, shuffled

from qray.judge.guardrails import guard
from qray.study_verdict import Verdict

STUDIES = 60
FEW_STUDIES = 10
HONEST: dict[str, Change] = {
    "8 bits": noise(0.6), "4 bits": noise(1.5), "heavy tails": heavy(0.3), "bfloat16": bfloat16(0.3),
}  # fmt: skip
DOCTORED: dict[str, tuple[Change, str]] = {
    "two clips clamped below": (clamped(2, 0), "tied_low"),
    "two clips clamped above": (clamped(0, 2), "tied_high"),
    "the lowest class shifted by 1.5": (shifted(0, 35, 1.5), "local_move"),
    "the highest class shifted by 2": (shifted(50, 100, 2.0), "class_shift"),
    "a twentieth shuffled below": (shuffled(0.05, "low"), "local_move"),
    "a tenth shuffled above": (shuffled(0.1, "high"), "tail"),
}


def broken(change: Change, clips: int, seed: int) -> set[str]:
    """Names of the guardrails that do not hold in one simulated study."""
    rng = np.random.default_rng(seed)
    target, reference = echo(clips, rng)
    found = guard(target, change(target, reference, rng), reference, Verdict())
    return {one.name for one in found if one.ok is False}


def refusals(name: str, clips: int, studies: int) -> int:
    """How many of so many studies refuse an honest variant."""
    return sum(bool(broken(HONEST[name], clips, seed)) for seed in range(studies))


def findings(name: str, studies: int) -> int:
    """In how many of so many studies the guardrail that is there for it finds a fault."""
    change, guardrail = DOCTORED[name]
    return sum(guardrail in broken(change, 300, seed) for seed in range(studies))


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_variant_is_hardly_ever_refused(name: str) -> None:
    assert refusals(name, 60, FEW_STUDIES) <= 1


@pytest.mark.parametrize("name", DOCTORED)
def test_most_faults_are_found_by_the_guardrail_that_is_there_for_them(name: str) -> None:
    assert findings(name, FEW_STUDIES) >= 0.6 * FEW_STUDIES


@pytest.mark.slow
@pytest.mark.parametrize("clips", [30, 60, 300])
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_variant_is_seldom_refused(name: str, clips: int) -> None:
    assert refusals(name, clips, STUDIES) <= 0.05 * STUDIES


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCTORED)
def test_each_guardrail_finds_what_it_is_for(name: str) -> None:
    assert findings(name, STUDIES) >= 0.8 * STUDIES
