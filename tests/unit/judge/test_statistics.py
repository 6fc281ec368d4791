"""Intervals and verdicts against SciPy, NumPy, and cases that can be worked out by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import r2_score, root_mean_squared_error

from qray.judge.statistics import (
    accuracy,
    bootstrap_means,
    interval,
    mean_interval,
    paired_difference,
    paired_ratio,
    rank_sum,
    tail_probability,
    verdict,
)

RNG = np.random.default_rng(0)
TARGET = RNG.normal(55, 12, 80)
GOOD = TARGET + RNG.normal(0, 3, 80)
BAD = TARGET + RNG.normal(0, 6, 80)
#: Two percentile bootstraps of 20,000 replicates differ by a few percent of the interval's width.
TOLERANCE = 0.05


def scipy_interval(values: np.ndarray) -> tuple[float, float]:
    result = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=7)
    return result.confidence_interval.low, result.confidence_interval.high


def expanded_level(n: int) -> float:
    """Confidence level at which SciPy's percentile interval is the expanded one (Hesterberg 2015)."""
    return float(1 - 2 * stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1)))


def close(ours: tuple[float | None, float | None], theirs: tuple[float, float]) -> bool:
    return bool(np.allclose(np.array(ours, float), theirs, atol=TOLERANCE * (theirs[1] - theirs[0])))


def test_the_interval_of_the_mae_is_scipys() -> None:
    ours = accuracy(TARGET, GOOD, 20_000, 0)
    assert close((ours.mae_low, ours.mae_high), scipy_interval(np.abs(GOOD - TARGET)))


@pytest.mark.parametrize("n", [10, 30, 80])
def test_the_interval_is_scipys_at_the_expanded_level(n: int) -> None:
    values = np.abs(GOOD - TARGET)[:n]
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=7, confidence_level=expanded_level(n)
    ).confidence_interval
    assert close(interval(bootstrap_means(values[:, None], 20_000, 0), n), (theirs.low, theirs.high))


def test_few_clips_have_a_wider_interval_than_the_plain_percentile() -> None:
    values = bootstrap_means(np.abs(GOOD - TARGET)[:10, None], 20_000, 0)
    (low, high), (lower, higher) = interval(values), interval(values, 10)
    assert (higher - lower) / (high - low) == pytest.approx(2.262 * np.sqrt(10 / 9) / 1.96, abs=0.06)


def test_the_interval_of_a_skewed_mean_is_nearly_scipys_bca_with_many_clips() -> None:
    values = RNG.gamma(2.0, 1.0, 2_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=5_000, method="BCa", rng=7).confidence_interval
    assert close(interval(bootstrap_means(values[:, None], 20_000, 0), 2_000), (theirs.low, theirs.high))


@pytest.mark.parametrize(("n", "level"), [(2, 0.95), (10, 0.95), (80, 1 - 0.05 / 4)])
def test_the_t_interval_of_a_mean_is_scipys(n: int, level: float) -> None:
    values = (GOOD - TARGET)[:n]
    theirs = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert mean_interval(values, level) == pytest.approx((values.mean(), theirs.low, theirs.high))


def test_the_t_interval_of_a_mean_costs_no_import_of_scipys_statistics() -> None:
    code = (
        "import sys, numpy; from qray.judge.statistics import mean_interval\n"
        "mean_interval(numpy.arange(3.0)); print('scipy.special' in sys.modules, 'scipy.stats' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.parametrize(("figure", "score"), [("rmse", root_mean_squared_error), ("r2", r2_score)])
def test_the_intervals_of_rmse_and_r2_are_scipys_on_resampled_clips(
    figure: str, score: Callable[[np.ndarray, np.ndarray], float]
) -> None:
    ours = vars(accuracy(TARGET, GOOD, 20_000, 0))
    theirs = stats.bootstrap(
        (TARGET, GOOD), score, paired=True, vectorized=False, n_resamples=5_000, method="percentile", rng=7,
        confidence_level=expanded_level(len(TARGET)),
    ).confidence_interval  # fmt: skip
    assert close((ours[f"{figure}_low"], ours[f"{figure}_high"]), (theirs.low, theirs.high))


def test_r2_has_no_interval_where_a_resample_may_have_one_target_alone() -> None:
    ours = accuracy(np.array([50.0, 60.0]), np.array([51.0, 58.0]), 200, 0)
    assert (ours.r2 is not None, ours.r2_low, ours.rmse_low is not None) == (True, None, True)


@pytest.mark.parametrize("above", [True, False])
def test_the_tail_beyond_the_end_of_the_interval_is_2_5_percent(above: bool) -> None:
    values = bootstrap_means(np.abs(GOOD - TARGET)[:20, None], 20_000, 0)[:, 0]
    low, high = interval(values, 20)
    assert tail_probability(values, high if above else low, 20, above=above) == pytest.approx(0.025, abs=0.0005)


def test_no_tail_is_smaller_than_the_replicates_can_show() -> None:
    values = bootstrap_means(GOOD[:, None], 100, 0)[:, 0]
    assert tail_probability(values, 1e9, len(GOOD), above=True) > 0.005


def test_the_interval_of_the_difference_is_scipys_on_paired_errors() -> None:
    good, bad = np.abs(GOOD - TARGET), np.abs(BAD - TARGET)
    _, ours = paired_difference(bad, good, 20_000, 0)
    assert close(ours, scipy_interval(bad - good))


def test_the_interval_of_the_ratio_resamples_clips_not_errors() -> None:
    good, bad = np.abs(GOOD - TARGET), np.abs(BAD - TARGET)
    compared = paired_ratio(good, bad, 20_000, 0)
    assert compared is not None

    def ratio(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return a.mean(axis) / b.mean(axis)

    theirs = stats.bootstrap((good, bad), ratio, paired=True, n_resamples=20_000, method="percentile", rng=7)
    assert close(compared[1], (theirs.confidence_interval.low, theirs.confidence_interval.high))


def test_the_interval_holds_the_middle_95_percent() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


def test_mae_rmse_and_r2_are_their_definitions() -> None:
    ours = accuracy(np.array([0.0, 10.0, 20.0]), np.array([1.0, 10.0, 16.0]), 100, 0)
    assert (ours.n_clips, ours.mae) == (3, pytest.approx(5 / 3))
    assert (ours.rmse, ours.r2) == (pytest.approx(np.sqrt(17 / 3)), pytest.approx(1 - 17 / 200))


@pytest.mark.parametrize("constant", [55.0, 0.1])
def test_r2_is_unknown_where_all_targets_are_the_same(constant: float) -> None:
    assert accuracy(np.full(7, constant), np.arange(7.0), 100, 0).r2 is None


def test_one_clip_has_an_error_but_no_interval() -> None:
    ours = accuracy(np.array([50.0]), np.array([53.0]), 100, 0)
    assert (ours.mae, ours.mae_low, ours.mae_high) == (3.0, None, None)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 2 predictions are not finite"):
        accuracy(np.array([50.0, 60.0]), np.array([50.0, bad]), 100, 0)


def test_no_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="no clip"):
        accuracy(np.array([]), np.array([]), 100, 0)


def test_identical_predictions_differ_by_exactly_nothing() -> None:
    error = np.abs(GOOD - TARGET)
    assert paired_difference(error, error, 1000, 0) == (0.0, (0.0, 0.0))


def test_the_same_seed_gives_the_same_interval() -> None:
    assert accuracy(TARGET, GOOD, 500, 3) == accuracy(TARGET, GOOD, 500, 3)


def test_another_seed_gives_another_interval() -> None:
    assert accuracy(TARGET, GOOD, 500, 3) != accuracy(TARGET, GOOD, 500, 4)


def test_resampled_columns_stay_paired() -> None:
    means = bootstrap_means(np.stack([GOOD, GOOD + 1], 1), 200, 0)
    assert np.allclose(means[:, 1] - means[:, 0], 1)


@pytest.mark.parametrize("replicates", [1, 99, 1000])
def test_as_many_replicates_come_out_as_were_asked_for(replicates: int) -> None:
    assert bootstrap_means(np.ones((3_000, 1)), replicates, 0).shape == (replicates, 1)


def test_a_ratio_to_a_reference_without_error_is_unknown() -> None:
    assert paired_ratio(np.array([1.0, 2.0]), np.array([0.0, 3.0]), 200, 0) is None


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.2, 0.4, "non-inferior"),
        (0.1, 0.4, "non-inferior"),
        (0.0, 0.0, "non-inferior"),
        (0.6, 0.9, "inferior"),
        (0.4, 0.6, "inconclusive"),
        (-2.0, 2.0, "inconclusive"),
        (0.2, 0.5, "inconclusive"),
        (0.5, 0.9, "inconclusive"),
    ],
)
def test_the_verdict_is_where_the_interval_lies_to_the_margin(low: float, high: float, word: str) -> None:
    assert verdict(low, high, margin=0.5) == word


@pytest.mark.parametrize(("here", "elsewhere"), [(3, 60), (5, 295), (8, 9), (9, 3), (9, 40), (35, 265)])
@pytest.mark.parametrize("digits", [12, 1], ids=["no ties", "ties"])
def test_the_rank_sum_test_is_scipys(here: int, elsewhere: int, digits: int) -> None:
    rng = np.random.default_rng(here)
    one, other = np.round(rng.normal(0.8, 1, here), digits), np.round(rng.normal(0, 1, elsewhere), digits)
    wanted = stats.mannwhitneyu(one, other, alternative="greater").pvalue
    assert rank_sum(one, other) == pytest.approx(wanted, rel=1e-9)


def test_values_that_are_all_the_same_rank_nowhere() -> None:
    assert rank_sum(np.ones(5), np.ones(20)) == 1.0
