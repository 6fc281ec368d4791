"""Ratios of latencies: their intervals hold what they promise, and only what separates from 1 is called settled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from support.evidence_runs import VARIANTS, key_of, make_latency, make_run

from qray.judge.judge import read_evidence
from qray.judge.ratio import Speed, Timed, ratio, settled, speed_of
from qray.judge.row import Row
from qray.judge.statistics import Estimate
from qray.measure.latency import Latency
from qray.words.figures import fold
from qray.words.phrases import pay_words

ROUNDS, CALLS, RUNS = 10, 9, 400
TRUTH = 2.0
Interval = tuple[float, float]


def measured(ms: float, rng: np.random.Generator, common: np.ndarray, spread: float = 0.02) -> Latency:
    """A latency whose rounds are slowed by what is common to all, by own luck, and whose calls are never too fast."""
    own = np.exp(common + rng.normal(0, spread, len(common)))
    late = np.exp(np.abs(rng.normal(0, 0.05, (len(common), CALLS))))
    return Latency((ms * own[:, None] * late).tolist())


def _disturbed(latency: Latency, rng: np.random.Generator) -> Latency:
    """One round in ten is slowed by another process, by a third or so."""
    hit = np.exp((rng.random(ROUNDS) < 0.1) * rng.exponential(0.3, ROUNDS))
    return Latency([[ms * by for ms in block] for block, by in zip(latency.blocks_ms, hit, strict=True)])


def pair(seed: int, truth: float = TRUTH, bursts: bool = False) -> tuple[Latency, Latency]:
    """Two variants in the same rounds of a machine that becomes slower and faster; one takes `truth` times as long."""
    rng = np.random.default_rng(seed)
    common = np.cumsum(rng.normal(0, 0.05, ROUNDS))
    slow, fast = measured(truth, rng, common), measured(1.0, rng, common)
    if bursts:
        slow, fast = (_disturbed(latency, rng) for latency in (slow, fast))
    return slow, fast


def student(slow: Latency, fast: Latency) -> Interval:
    found = ratio(slow, fast)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def percentile_bootstrap(slow: Latency, fast: Latency) -> Interval:
    logs = np.log(np.median(slow.blocks_ms, axis=1) / np.median(fast.blocks_ms, axis=1))
    drawn = np.random.default_rng(0).integers(0, ROUNDS, (500, ROUNDS))
    low, high = np.exp(np.quantile(logs[drawn].mean(1), [0.025, 0.975]))
    return float(low), float(high)


def coverage(interval: Callable[[Latency, Latency], Interval], **of: Any) -> float:
    held = [low <= TRUTH <= high for low, high in (interval(*pair(seed, **of)) for seed in range(RUNS))]
    return sum(held) / RUNS


def test_the_interval_holds_the_truth_in_95_of_100_runs_while_the_machine_drifts() -> None:
    assert 0.925 <= coverage(student) <= 0.975


def test_the_interval_holds_the_truth_where_other_processes_get_in_the_way_of_some_rounds() -> None:
    assert coverage(student, bursts=True) >= 0.94


def test_a_percentile_bootstrap_of_ten_rounds_would_be_too_narrow() -> None:
    assert coverage(percentile_bootstrap) < 0.925


def test_the_interval_is_students_of_the_logarithms() -> None:
    slow, fast = pair(1)
    logs = np.log(np.median(slow.blocks_ms, axis=1) / np.median(fast.blocks_ms, axis=1))
    expected = stats.ttest_1samp(logs, 0.0).confidence_interval(0.95)
    assert student(slow, fast) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))


def test_the_value_is_the_geometric_mean_over_the_rounds() -> None:
    slow, fast = pair(1)
    found = ratio(slow, fast)
    assert found is not None
    expected = stats.gmean(np.median(slow.blocks_ms, axis=1) / np.median(fast.blocks_ms, axis=1))
    assert found.value == pytest.approx(expected)


def test_what_slows_a_whole_round_leaves_the_interval_as_it_is() -> None:
    slow, fast = pair(2)
    factors = np.linspace(1, 5, ROUNDS)

    def slowed(of: Latency) -> Latency:
        return Latency([[ms * factor for ms in block] for block, factor in zip(of.blocks_ms, factors, strict=True)])

    assert student(slowed(slow), slowed(fast)) == pytest.approx(student(slow, fast))


def test_a_ratio_and_its_inverse_agree() -> None:
    slow, fast = pair(4)
    low, high = student(slow, fast)
    assert student(fast, slow) == pytest.approx((1 / high, 1 / low))


def test_one_round_gives_a_value_and_no_interval() -> None:
    found = ratio(Latency([[6.0] * 5]), Latency([[3.0] * 5]))
    assert found is not None
    assert (found.value, found.low, found.high) == (pytest.approx(2.0), None, None)


@pytest.mark.parametrize(
    "other",
    [
        Latency(),
        Latency([[1.0] * 9] * (ROUNDS - 1)),
        Latency([[1.0] * 9] * (ROUNDS - 1) + [[]]),
        Latency([[1.0]]),
        Latency([[0.0] * 9] * ROUNDS),
        Latency([[float("nan")] * 9] * ROUNDS),
        Latency(error="it broke"),
    ],
    ids=["not measured", "other rounds", "an empty round", "one call", "no time", "not a number", "failed"],
)
def test_what_cannot_be_compared_has_no_ratio(other: Latency) -> None:
    own = Latency([[1.0] * 9] * ROUNDS)
    assert (ratio(own, other), ratio(other, own)) == (None, None)


def fleet(seed: int = 0, **ms: float) -> list[Timed]:
    """Variants by "method_engine" and milliseconds, measured in the same drifting rounds."""
    rng = np.random.default_rng(seed)
    common = np.cumsum(rng.normal(0, 0.05, ROUNDS))
    named = [(name.split("_"), value) for name, value in ms.items()]
    return [Timed(f"{m}-{e}", m, e, measured(value, rng, common, 0.005)) for (m, e), value in named]


def speed(name: str, of: list[Timed]) -> Speed:
    return speed_of(next(t for t in of if t.name == name), of, "fp32-eager")


def said(name: str, of: list[Timed]) -> str | None:
    """What a row of it says of whether it pays."""
    own = next(t for t in of if t.name == name)
    return pay_words(Row(variant=name, key="", method=own.method, engine=own.engine, **speed(name, of).columns()))


USUAL = fleet(
    fp32_eager=8.0, fp32_openvino=4.0, fp32_onnxruntime=3.4, ptq_openvino=1.5, ptq_onnxruntime=3.8,
    bf16_eager=6.0, finetune_eager=8.0,
)  # fmt: skip


def test_the_speed_up_is_that_of_the_engine_times_that_of_the_precision() -> None:
    found = speed("ptq-openvino", USUAL)
    assert found.total is not None
    assert found.engine is not None
    assert found.precision is not None
    assert found.engine.value * found.precision.value == pytest.approx(found.total.value)


def test_the_part_of_the_engine_comes_from_fp32_on_the_same_engine() -> None:
    found = speed("ptq-openvino", USUAL).engine
    assert found is not None
    assert found.value == pytest.approx(2.0, rel=0.05)


def test_without_fp32_on_its_engine_a_speed_up_has_no_parts() -> None:
    found = speed("ptq-openvino", [t for t in USUAL if t.name != "fp32-openvino"])
    assert (found.engine, found.precision, found.total is None) == (None, None, False)


def test_the_best_fp32_is_the_fastest_of_all_engines() -> None:
    assert {speed(t.name, USUAL).best_fp32 for t in USUAL} == {"fp32-onnxruntime"}


@pytest.mark.parametrize(("name", "pays"), [("ptq-openvino", True), ("ptq-onnxruntime", False), ("bf16-eager", False)])
def test_fewer_bits_pay_where_they_are_faster_than_the_fastest_fp32(name: str, pays: bool) -> None:
    assert speed(name, USUAL).pays is pays


@pytest.mark.parametrize("name", ["fp32-eager", "fp32-openvino", "finetune-eager"])
def test_of_fp32_it_is_not_asked_whether_it_pays(name: str) -> None:
    assert (speed(name, USUAL).pays, said(name, USUAL)) == (None, None)


def test_a_variant_that_does_not_pay_is_said_so() -> None:
    words = said("ptq-onnxruntime", USUAL) or ""
    assert words.startswith("INT8 does not pay here: 0.")
    assert words.endswith("the speed of fp32-onnxruntime, the fastest FP32 engine")


def test_bf16_is_not_called_int8() -> None:
    assert (said("bf16-eager", USUAL) or "").startswith("bf16 does not pay here")


def test_what_the_interval_does_not_separate_is_not_settled() -> None:
    tie = fleet(seed=1, fp32_eager=8.0, ptq_openvino=8.0)
    assert speed("ptq-openvino", tie).pays is None
    assert "not settled" in (said("ptq-openvino", tie) or "")


@pytest.mark.parametrize("engines", [1, 4])
def test_equal_speeds_are_rarely_called_different(engines: int) -> None:
    names = [f"fp32_{engine}" for engine in ("eager", "openvino", "onnxruntime", "inductor")[:engines]]
    equal = dict.fromkeys([*names, "ptq_openvino"], 8.0)
    wrong = sum(speed("ptq-openvino", fleet(seed, **equal)).pays is not None for seed in range(RUNS))
    assert wrong / RUNS <= 0.05


def test_without_any_fp32_it_is_not_known_whether_int8_pays() -> None:
    alone = fleet(ptq_openvino=1.5)
    found = speed("ptq-openvino", alone)
    assert (found.pays, found.best_fp32) == (None, None)
    assert "not known" in (said("ptq-openvino", alone) or "")


def test_one_round_settles_nothing() -> None:
    once = [Timed("fp32-eager", "fp32", "eager", Latency([[8.0] * 9])),
            Timed("ptq-openvino", "ptq", "openvino", Latency([[1.0] * 9]))]  # fmt: skip
    assert speed("ptq-openvino", once).pays is None
    assert "two blocks or more" in (said("ptq-openvino", once) or "")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1.01, 1.2, True), (0.8, 0.99, False), (0.9, 1.1, None), (1.0, 1.2, None), (None, None, None)],
)
def test_a_ratio_is_settled_once_its_interval_leaves_1(low: float, high: float, expected: bool | None) -> None:
    assert settled(low, high) is expected


@pytest.mark.parametrize(("of", "text"), [(Estimate(1.5, 1.4, 1.61), "1.50x (1.40, 1.61)"), (Estimate(2.0), "2.00x")])
def test_a_ratio_in_words_has_its_interval_where_there_is_one(of: Estimate, text: str) -> None:
    assert fold(of) == text


def test_of_a_whole_run_every_variant_with_a_latency_has_the_speed_that_its_row_says(tmp_path: Path) -> None:
    evidence = read_evidence(make_run(tmp_path))
    timed = [variant for variant in evidence.variants if variant.row.latency_p50_ms is not None]
    assert len(timed) == len([name for name, made in VARIANTS.items() if made.status == "ok"])
    for variant in timed:
        assert variant.speed is not None
        columns = variant.speed.columns()
        assert {column: getattr(variant.row, column) for column in columns} == columns


def test_a_measurement_of_other_artifacts_is_not_taken_for_the_runs_own(tmp_path: Path) -> None:
    """OUT may hold units of other settings: run.json says which are the run's."""
    other = {key_of("build", name): asdict(latency) for name, latency in make_latency(VARIANTS, seed=5).items()}
    other[key_of("build", "ptq-openvino")]["blocks_ms"] = [[80.0] * 25] * 10
    units = {"measure-0000000000000000": {"latency": other, "started": 9e9, "seconds": 1.0}}
    found = next(v for v in read_evidence(make_run(tmp_path, units=units)).variants if v.name == "ptq-openvino")
    assert found.speed is not None
    assert found.speed.total is not None
    assert found.speed.total.value == pytest.approx(8.0 / 1.5, rel=0.05)
