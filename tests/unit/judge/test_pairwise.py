"""Two variants of one run against each other: the same clips, the same rounds, the right measurement."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from support.evidence_runs import VARIANTS, key_of, make_latency, make_run
from support.outcomes import AT

from qray.atomic import write_json
from qray.errors import UsageError
from qray.judge.clips import clips_of
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.judge import read_evidence
from qray.judge.outcome import Outcome
from qray.judge.pairwise import Pairs, choose_point, compare_clips
from qray.judge.statistics import Estimate
from qray.point import Point
from qray.study_verdict import Verdict

FEW = {name: VARIANTS[name] for name in ("fp32", "bf16-openvino", "ptq-openvino")}
BOOTSTRAP = Verdict(bootstrap=300)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return read_evidence(make_run(tmp_path_factory.mktemp("run"), variants=FEW))


def interval(estimate: Estimate | None) -> tuple[float, float]:
    assert estimate is not None
    assert estimate.bounds is not None
    return estimate.bounds


def predicted(target: np.ndarray, error: np.ndarray) -> VariantEvidence:
    """A variant that errs by `error` (float64 (n,)) on n clips."""
    names = [f"clip-{i}" for i in range(len(target))]
    clips = clips_of(names, target, target + error)
    return VariantEvidence(Outcome("v", "key", "ptq", "openvino"), "ok", None, clips)


def with_point(evidence: Evidence, threads: int, p50: float) -> Evidence:
    """The same run with one more (threads, 1), at which every variant has the same median."""
    variants = tuple(
        replace(v, rows=(*v.rows, replace(v.row, threads=threads, latency_p50_ms=p50))) for v in evidence.variants
    )
    return replace(evidence, variants=variants)


def test_the_difference_to_fp32_is_the_one_that_the_verdict_rests_on(evidence: Evidence) -> None:
    comparison = next(v for v in evidence.variants if v.name == "ptq-openvino").comparison
    assert comparison is not None
    low, high = interval(Pairs(evidence, AT).error("ptq-openvino", "fp32"))
    assert (low, high) == pytest.approx((comparison.delta_low, comparison.delta_high))


def test_a_difference_the_other_way_round_has_the_other_sign(evidence: Evidence) -> None:
    pairs = Pairs(evidence, AT)
    low, high = interval(pairs.error("ptq-openvino", "bf16-openvino"))
    assert interval(pairs.error("bf16-openvino", "ptq-openvino")) == pytest.approx((-high, -low), abs=1e-6)


def test_the_interval_of_a_median_holds_it(evidence: Evidence) -> None:
    found = Pairs(evidence, AT).p50("ptq-openvino")
    low, high = interval(found)
    assert found is not None
    assert low <= found.value <= high


def test_a_ratio_of_latencies_is_narrower_than_the_drift_of_the_rounds(evidence: Evidence) -> None:
    # Rounds drift by 5 %, which both variants share.
    low, high = interval(Pairs(evidence, AT).latency("ptq-openvino", "fp32"))
    assert high / low < 1.02


def test_a_measurement_of_older_settings_is_not_taken_for_the_tables(tmp_path: Path) -> None:
    stale = {key_of("build", name): asdict(latency) for name, latency in make_latency(FEW, seed=7).items()}
    stale[key_of("build", "ptq-openvino")]["blocks_ms"] = [[80.0] * 25] * 10
    out = make_run(tmp_path, variants=FEW, units={"measure-0000000000000000": {"latency": stale, "seconds": 1.0}})
    found = Pairs(read_evidence(out), AT).latency("ptq-openvino", "fp32")
    assert found is not None
    assert found.value == pytest.approx(1.5 / 8.0, rel=0.02)


def test_a_median_of_one_round_has_no_interval(tmp_path: Path) -> None:
    out = make_run(tmp_path, variants=FEW)
    (path,) = (out / "units").glob("measure-*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    for latency in record["latency"].values():
        latency["blocks_ms"] = [[call for block in latency["blocks_ms"] for call in block]]
    write_json(path, record)
    found = Pairs(read_evidence(out), AT).p50("ptq-openvino")
    assert found is not None
    assert found.bounds is None


def test_another_point_has_its_own_latency(evidence: Evidence) -> None:
    found = Pairs(with_point(evidence, 4, 0.7), Point(threads=4, batch=1)).p50("ptq-openvino")
    assert found == Estimate(0.7, None, None)


def test_the_point_asked_for_is_chosen(evidence: Evidence) -> None:
    assert choose_point(with_point(evidence, 4, 0.7), threads=4) == Point(threads=4, batch=1)


def test_the_first_point_is_the_default(evidence: Evidence) -> None:
    assert choose_point(with_point(evidence, 4, 0.7)) == AT


def test_a_device_can_be_asked_for(evidence: Evidence) -> None:
    found = replace(evidence, variants=tuple(
        replace(v, rows=(*v.rows, replace(v.row, device="cuda"))) for v in evidence.variants
    ))  # fmt: skip
    assert (choose_point(found), choose_point(found, device="cuda")) == (AT, replace(AT, device="cuda"))
    with pytest.raises(UsageError, match=r"--device xpu: not measured .* 1 thread, batch 1; cuda, 1 thread"):
        choose_point(found, device="xpu")


def test_a_batch_that_was_not_measured_is_bad_usage(evidence: Evidence) -> None:
    with pytest.raises(UsageError, match="--batch 32"):
        choose_point(evidence, batch=32)


def _share_called_worse(paired: bool, truth: float, repetitions: int = 150, clips: int = 60) -> float:
    """How often the interval of B - A lies above 0 where the true difference of their errors is `truth`."""
    worse = 0
    for at in range(repetitions):
        rng = np.random.default_rng((at, int(paired)))
        target = rng.normal(55, 12, clips)
        hard = rng.gamma(2.0, 2.0, clips) + 2.0
        a = predicted(target, hard + rng.normal(0, 0.5, clips))
        if not paired:
            target, hard = rng.normal(55, 12, clips), rng.gamma(2.0, 2.0, clips) + 2.0
        b = predicted(target, hard + truth + rng.normal(0, 0.5, clips))
        estimate, was_paired, _ = compare_clips(a, b, BOOTSTRAP)
        assert was_paired is paired
        worse += interval(estimate)[0] > 0
    return worse / repetitions


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "unpaired"])
def test_chance_alone_is_seldom_called_worse(paired: bool) -> None:
    # 2.5 % are meant to be; 150 repetitions give up to 6.7 % with a chance of 99.8 %.
    assert _share_called_worse(paired, 0.0) <= 0.067


def test_pairs_find_a_loss_that_two_samples_cannot() -> None:
    assert _share_called_worse(True, 0.4) > 0.9 > 0.5 > _share_called_worse(False, 0.4)
