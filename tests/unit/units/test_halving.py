"""Successive halving: who goes on depends on the scores at a rung, on nothing else."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from qray.units.halving import Score, Standing, rungs, standings

INF = float("inf")


def trials(*epochs: int, bits: int = 8) -> list[dict[str, Any]]:
    return [{"weight_bits": bits, "epochs": count} for count in epochs]


def known(table: dict[tuple[int, int], float]) -> Score:
    return lambda trial, epoch: table.get((trial, epoch))


def ranked(trial: int, epoch: int) -> float:
    """The first trial is the best at every epoch."""
    return trial + 1 / epoch


@pytest.mark.parametrize(("longest", "factor", "wanted"), [
    (1, 2, (1,)), (2, 2, (1, 2)), (3, 2, (1, 2, 3)), (8, 2, (1, 2, 4, 8)), (8, 3, (1, 3, 8)), (9, 3, (1, 3, 9)),
    (4, 100, (1, 4)),
])  # fmt: skip
def test_rungs_grow_by_the_factor_up_to_the_longest_trial(longest: int, factor: int, wanted: tuple[int, ...]) -> None:
    assert rungs(longest, factor) == wanted


def test_at_first_every_trial_runs_to_the_first_rung() -> None:
    assert standings(trials(4, 1), known({}), 2) == [Standing("run", 1), Standing("run", 1)]


def test_one_rung_has_no_cut() -> None:
    assert standings(trials(1, 1, 1), ranked, 2) == [Standing("whole", 1)] * 3


def test_a_trial_waits_for_the_others_of_its_rung() -> None:
    assert standings(trials(2, 2), known({(0, 1): 5.0}), 2) == [Standing("wait", 1), Standing("run", 1)]


@pytest.mark.parametrize(("factor", "left"), [(2, 3), (3, 2), (5, 1), (9, 1)])
def test_of_five_the_better_part_goes_on(factor: int, left: int) -> None:
    found = standings(trials(9, 9, 9, 9, 9), known({(i, 1): float(i) for i in range(5)}), factor)
    assert [s.state for s in found] == ["run"] * left + ["cut"] * (5 - left)


def test_a_trial_at_its_own_last_epoch_is_never_cut() -> None:
    found = standings(trials(2, 1), known({(0, 1): 1.0, (1, 1): 9.0, (0, 2): 1.0}), 2)
    assert found == [Standing("whole", 2), Standing("whole", 1)]


def test_an_own_last_epoch_between_two_rungs_is_reached() -> None:
    assert standings(trials(3, 3), ranked, 2)[0] == Standing("whole", 3)


def test_widths_are_not_compared() -> None:
    found = standings(trials(2) + trials(2, bits=4), known({(0, 1): 1.0, (1, 1): 9.0}), 2)
    assert found == [Standing("run", 2), Standing("run", 2)]


def test_a_trial_that_diverged_takes_part_in_no_rung_after() -> None:
    found = standings(trials(2, 2, 2, 2), known({(0, 1): INF, (1, 1): INF, (2, 1): INF, (3, 1): 4.0}), 2)
    assert [s.state for s in found] == ["diverged", "diverged", "diverged", "run"]


def test_the_order_in_which_trials_report_decides_nothing() -> None:
    """Whatever subset of the scores is known, whoever is stopped by it is stopped in the end."""
    settings, factor = trials(4, 4, 2, 1), 2
    scores = {(i, e): ranked(i, e) for i in range(4) for e in range(1, settings[i]["epochs"] + 1)}
    end = standings(settings, known(scores), factor)
    for count in range(len(scores)):
        for some in itertools.combinations(scores, count):
            found = standings(settings, known({at: scores[at] for at in some}), factor)
            assert all(s == end[i] for i, s in enumerate(found) if s.state in ("cut", "whole"))


def test_a_milder_factor_lets_a_cut_trial_run_on_and_no_whole_one_again() -> None:
    settings = trials(4, 4, 4, 4)
    score = known({(0, 1): 1.0, (1, 1): 2.0, (2, 1): 3.0, (3, 1): 4.0, **{(0, e): 1.0 for e in range(2, 5)}})
    assert [s.state for s in standings(settings, score, 4)] == ["whole", "cut", "cut", "cut"]
    assert standings(settings, score, 2) == [
        Standing("wait", 2), Standing("run", 2), Standing("cut", 1), Standing("cut", 1)
    ]  # fmt: skip
