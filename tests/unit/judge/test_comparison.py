"""A variant against FP32: against statsmodels and scikit-learn, and in cases that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired
from support.evidence_runs import standard_noise

from qray.judge.clips import clips_of, pair
from qray.judge.comparison import MIN_CLIPS, Comparison, adjust, clips_to_settle, compare, holm, tost
from qray.judge.statistics import share_interval
from qray.study_verdict import Verdict

SETTINGS = Verdict(margin=1.0, bootstrap=2000)
RNG = np.random.default_rng(5)
N = 200
TARGET = RNG.normal(55, 12, N)
ERROR = RNG.uniform(4, 12, N)
SIDE = RNG.choice([-1.0, 1.0], N)
REFERENCE = TARGET + SIDE * ERROR


def changed(mean: float, sd: float, n: int = N) -> Comparison:
    """A variant whose absolute error grows by `mean` +- `sd`, exactly, on n clips."""
    change = standard_noise(np.random.default_rng(9), n, mean, sd)
    return compare(TARGET[:n], TARGET[:n] + SIDE[:n] * (ERROR[:n] + change), REFERENCE[:n], SETTINGS)


def test_the_difference_is_that_of_the_mean_absolute_errors() -> None:
    assert changed(0.3, 1.0).delta == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("mean", "sd", "word"),
    [(0.0, 1.0, "non-inferior"), (-2.0, 1.0, "non-inferior"), (2.0, 1.0, "inferior"), (0.95, 1.5, "inconclusive")],
)
def test_the_verdict_is_the_known_one(mean: float, sd: float, word: str) -> None:
    assert changed(mean, sd).verdict == word


@pytest.mark.parametrize(("mean", "equivalent"), [(0.0, True), (0.7, True), (-2.0, False), (2.0, False), (1.0, False)])
def test_equivalent_is_within_the_margin_on_both_sides(mean: float, equivalent: bool) -> None:
    assert changed(mean, 1.0).equivalent is equivalent


@pytest.mark.parametrize("mean", [-0.97, 0.0, 0.9, 1.1])
def test_the_equivalence_test_is_statsmodels(mean: float) -> None:
    difference = standard_noise(RNG, 40, mean, 1.3)
    theirs = ttost_paired(difference, np.zeros(40), -1.0, 1.0)[0]
    assert tost(difference, 1.0) == pytest.approx(theirs, rel=1e-9)


def test_predictions_of_equal_error_are_equivalent() -> None:
    assert tost(np.zeros(40), 0.1) == 0


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.5], [0.9, 0.8, 0.99], [0.02, 0.02, 0.02], []])
def test_holm_is_statsmodels(p: list[float]) -> None:
    theirs = multipletests(p, method="holm")[1] if p else []
    assert holm(p) == pytest.approx(list(theirs))


@pytest.mark.parametrize(("hits", "n"), [(0, 30), (7, 30), (30, 30), (1, 1)])
def test_the_interval_of_a_share_is_statsmodels(hits: int, n: int) -> None:
    assert share_interval(hits, n) == pytest.approx(proportion_confint(hits, n, method="wilson"), abs=1e-12)


@pytest.mark.parametrize(("mean", "sd"), [(0.6, 3.0), (1.5, 2.0), (0.9, 1.0)])
def test_the_clips_that_settle_it_are_those_of_a_paired_t_test(mean: float, sd: float) -> None:
    theirs = TTestPower().solve_power(effect_size=abs(1 - mean) / sd, power=0.8, alpha=0.025, alternative="larger")
    ours = clips_to_settle(standard_noise(RNG, 30, mean, sd), 1.0)
    # Theirs takes Student's t for the normal, which is two clips more.
    assert ours == pytest.approx(theirs, abs=3)


def test_only_an_inconclusive_verdict_says_how_many_clips_would_settle_it() -> None:
    assert [changed(mean, 1.0).clips_to_settle is None for mean in (0.0, 0.95, 2.0)] == [True, False, True]


def test_no_number_of_clips_settles_a_difference_of_the_margin_itself() -> None:
    assert clips_to_settle(np.array([0.5, 1.5] * 10), 1.0) is None


@pytest.mark.parametrize("mean", [0.5, 0.8, 0.85, 0.86, 0.87, 0.9, 1.2])
def test_p_is_under_2_5_percent_where_the_verdict_is_non_inferior(mean: float) -> None:
    found = changed(mean, 1.0)
    assert found.p_noninferior is not None
    assert (found.p_noninferior < 0.025) == (found.verdict == "non-inferior")


def test_p_is_near_that_of_a_one_sided_t_test() -> None:
    found = changed(0.87, 1.0)
    expected = stats.t.cdf((0.87 - 1) / (1.0 / np.sqrt(N)), N - 1)
    assert found.p_noninferior == pytest.approx(expected, abs=0.02)


def test_the_share_that_moved_counts_predictions_and_not_errors() -> None:
    other_side = TARGET - SIDE * ERROR
    found = compare(TARGET, other_side, REFERENCE, SETTINGS)
    assert (found.delta, found.moved_share) == (pytest.approx(0), 1.0)
    assert found.max_moved == pytest.approx(2 * ERROR.max())


def test_a_clip_that_moves_by_the_limit_itself_has_not_moved() -> None:
    found = compare(np.zeros(20), np.full(20, 5.0), np.zeros(20), SETTINGS)
    assert (found.moved_share, found.max_moved) == (0.0, 5.0)


def test_what_counts_as_moved_is_the_studys() -> None:
    settings = SETTINGS.model_copy(update={"moved": 0.5})
    assert compare(np.zeros(20), np.ones(20), np.zeros(20), settings).moved_share == 1.0


def test_identical_predictions_are_non_inferior_and_equivalent() -> None:
    found = compare(TARGET, REFERENCE, REFERENCE, SETTINGS)
    assert (found.verdict, found.equivalent, found.delta_high) == ("non-inferior", True, 0.0)


def test_differences_that_do_not_vary_carry_no_verdict() -> None:
    found = compare(TARGET, TARGET + 3.0, TARGET + 2.5, SETTINGS)
    assert (found.delta, found.verdict, found.equivalent) == (pytest.approx(0.5), None, None)
    assert "do not vary" in found.notes[0]


def test_an_fp32_that_is_constant_carries_no_verdict() -> None:
    found = compare(TARGET, REFERENCE, np.full(N, 55.0), SETTINGS)
    assert found.verdict is None
    assert "FP32 predicts 55 for every clip" in found.notes[0]


def test_one_clip_carries_neither_an_interval_nor_a_verdict() -> None:
    found = changed(0.0, 0.0, n=1)
    assert (found.delta_low, found.verdict, found.moved_share) == (None, None, 0.0)


def test_too_few_clips_carry_an_interval_and_no_verdict() -> None:
    found = changed(0.0, 0.1, n=MIN_CLIPS - 1)
    assert (found.verdict, found.delta_low is None) == (None, False)


def test_just_enough_clips_carry_a_verdict() -> None:
    assert changed(0.0, 0.1, n=MIN_CLIPS).verdict == "non-inferior"


@pytest.mark.parametrize("which", [0, 1, 2])
def test_values_that_are_not_finite_are_refused(which: int) -> None:
    columns = [TARGET.copy(), TARGET.copy(), TARGET.copy()]
    columns[which][3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        compare(columns[0], columns[1], columns[2], SETTINGS)


def test_the_same_seed_gives_the_same_comparison() -> None:
    assert changed(0.5, 2.0) == changed(0.5, 2.0)


def test_clips_are_paired_by_name() -> None:
    own = clips_of(["a", "b"], [1.0, 2.0], [10.0, 20.0])
    paired = pair(own, clips_of(["b", "a"], [2.0, 1.0], [200.0, 100.0]))
    assert list(paired["reference"]) == [100.0, 200.0]


def test_clips_that_fp32_could_not_read_are_left_out_of_a_pair() -> None:
    own = clips_of(["a", "b", "c"], [1.0, 2.0, 3.0], [10.0, 20.0, 30.0])
    paired = pair(own, clips_of(["a", "b"], [1.0, 2.0], [np.nan, 200.0]))
    assert list(paired["clip"]) == ["b"]


def with_p(p: float) -> Comparison:
    return replace(changed(0.0, 1.0), p_noninferior=p, p_inferior=1 - p)


def test_holm_takes_away_what_only_stands_alone() -> None:
    found = [c for c in adjust([with_p(0.001), with_p(0.02)] + [with_p(0.5)] * 3) if c is not None]
    assert [c.verdict_holm for c in found[:2]] == ["non-inferior", "inconclusive"]


def test_the_declared_verdict_is_not_adjusted() -> None:
    assert {c.verdict for c in adjust([with_p(0.02)] * 5) if c is not None} == {"non-inferior"}


def test_a_variant_that_is_plainly_inferior_is_so_after_holm() -> None:
    adjusted = adjust([changed(0.0, 1.0), changed(3.0, 1.0)])[1]
    assert adjusted is not None
    assert adjusted.verdict_holm == "inferior"


def test_variants_without_a_verdict_do_not_count_for_holm() -> None:
    without = changed(0.0, 0.0, n=1)
    found = adjust([None, with_p(0.02), without])
    assert found[0] is None
    assert found[1] is not None
    assert found[1].p_holm == pytest.approx(0.02)
    assert found[2] == without
