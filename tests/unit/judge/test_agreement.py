"""Bland-Altman against the published example and SciPy; reclassification against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import recall_score

from qray.judge.agreement import BlandAltman, bland_altman, reclassify

#: Peak flow by two meters, first readings: Bland & Altman, Lancet i, 1986, table 1.
WRIGHT = np.array([494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427.0])
MINI = np.array([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451.0])
RNG = np.random.default_rng(2)


def test_bias_and_spread_are_those_of_the_published_example() -> None:
    found = bland_altman(WRIGHT, MINI)
    assert (found.n, round(found.bias, 1), round(found.sd or 0, 1)) == (17, -2.1, 38.8)


def test_the_interval_of_the_bias_is_that_of_the_published_example() -> None:
    found = bland_altman(WRIGHT, MINI)
    assert (found.bias_low, found.bias_high) == (pytest.approx(-22.0, abs=0.1), pytest.approx(17.8, abs=0.1))


def test_the_interval_of_the_bias_is_scipys() -> None:
    found, theirs = bland_altman(WRIGHT, MINI), stats.ttest_rel(WRIGHT, MINI).confidence_interval(0.95)
    assert (found.bias_low, found.bias_high) == pytest.approx((theirs.low, theirs.high))


def test_the_limits_hold_95_percent_of_normal_differences() -> None:
    first = RNG.normal(0, 3, 100_000)
    found = bland_altman(first, np.zeros(100_000) + RNG.normal(0, 1e-9, 100_000))
    assert found.lower is not None
    assert found.upper is not None
    assert np.mean((first > found.lower) & (first < found.upper)) == pytest.approx(0.95, abs=0.003)


def test_the_interval_of_a_limit_holds_the_true_limit() -> None:
    hits = 0
    for _ in range(400):
        first, second = RNG.normal(1, 2, 40), RNG.normal(0, 2, 40)
        found = bland_altman(first, second)
        assert found.upper_low is not None
        assert found.upper_high is not None
        hits += found.upper_low <= 1 + 1.96 * np.sqrt(8) <= found.upper_high
    assert 0.92 <= hits / 400 <= 0.98


def test_the_slope_is_scipys_regression_of_the_difference_on_the_mean() -> None:
    found = bland_altman(WRIGHT, MINI)
    line = stats.linregress((WRIGHT + MINI) / 2, WRIGHT - MINI)
    assert (found.slope, found.slope_p) == (pytest.approx(line.slope), pytest.approx(line.pvalue))


def test_a_prediction_that_is_pulled_to_the_mean_has_a_negative_slope() -> None:
    target = RNG.normal(55, 12, 200)
    found = bland_altman(55 + 0.5 * (target - 55) + RNG.normal(0, 1, 200), target)
    assert found.slope is not None
    assert found.slope < -0.5


def test_a_constant_predictor_has_a_bias_and_no_slope() -> None:
    target = RNG.normal(55, 12, 50)
    found = bland_altman(np.full(50, 50.0), target)
    assert (found.bias, found.slope) == (pytest.approx(50 - target.mean()), None)


def test_identical_methods_agree_without_a_slope() -> None:
    found = bland_altman(WRIGHT, WRIGHT)
    assert (found.bias, found.sd, found.lower, found.upper, found.slope) == (0, 0, 0, 0, 0)


def test_one_clip_has_a_bias_and_no_limits() -> None:
    assert bland_altman(np.array([5.0]), np.array([3.0])) == BlandAltman(1, 2.0, *[None] * 11)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        bland_altman(np.array([1.0, np.nan]), np.array([1.0, 2.0]))


LABEL = np.array([30.0, 38.0, 42.0, 44.0, 60.0])
REFERENCE = np.array([33.0, 41.0, 39.0, 46.0, 61.0])
OWN = np.array([36.0, 39.0, 41.0, 40.0, 39.0])


def test_clips_that_change_sides_are_counted_by_direction() -> None:
    (found,) = reclassify(LABEL, OWN, REFERENCE, (40.0,))
    # 41 -> 39 and 61 -> 39 go down, 39 -> 41 goes up.
    assert (found.up, found.down, found.share) == (1, 2, 0.6)


def test_a_prediction_on_the_threshold_is_not_below_it() -> None:
    (found,) = reclassify(LABEL, np.full(5, 40.0), np.full(5, 40.0), (40.0,))
    assert (found.sensitivity, found.specificity) == (0.0, 1.0)


def test_sensitivity_and_specificity_are_scikit_learns() -> None:
    label, own = RNG.normal(50, 10, 300), RNG.normal(50, 10, 300)
    (found,) = reclassify(label, own, label, (45.0,))
    assert found.sensitivity == pytest.approx(recall_score(label < 45, own < 45))
    assert found.specificity == pytest.approx(recall_score(label >= 45, own >= 45))


def test_fp32_is_held_against_the_label_too() -> None:
    (found,) = reclassify(LABEL, OWN, REFERENCE, (40.0,))
    assert (found.reference_sensitivity, found.reference_specificity) == (0.5, pytest.approx(2 / 3))


def test_a_threshold_with_all_labels_on_one_side_is_left_out() -> None:
    assert [found.threshold for found in reclassify(LABEL, OWN, REFERENCE, (20.0, 40.0, 99.0))] == [40.0]


def test_no_thresholds_are_no_reclassification() -> None:
    assert reclassify(LABEL, OWN, REFERENCE, ()) == ()
