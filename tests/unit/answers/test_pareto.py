"""The Pareto front: what separates dominates, what does not separate stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.evidence_runs import VARIANTS, Made, make_run
from support.outcomes import AT

from qray.answers.pareto import (
    Axis,
    Front,
    Place,
    Standing,
    _settle,
    compare_error,
    compare_latency,
    compare_size,
    dominates,
    pareto_front,
)
from qray.judge.judge import read_evidence
from qray.judge.pairwise import Pairs
from qray.judge.statistics import Estimate
from qray.point import Point

FP32 = {"fp32": VARIANTS["fp32"]}


def place(front: Front, name: str) -> Place:
    (found,) = [p for p in front.places if p.name == name]
    return found


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Front:
    return pareto_front(read_evidence(make_run(tmp_path_factory.mktemp("run"))))


def front_of(folder: Path, **variants: Made) -> Front:
    named = {name.replace("_", "-"): made for name, made in variants.items()}
    return pareto_front(read_evidence(make_run(folder, variants=FP32 | named)))


@pytest.mark.parametrize(
    ("low", "high", "margin", "standing"),
    [
        (-0.5, -0.1, 1.0, "better"),
        (0.1, 0.5, 1.0, "worse"),
        (-0.2, 0.3, 1.0, "as good"),
        (-0.2, 1.3, 1.0, "open"),
        (-0.2, 0.3, None, "open"),
        (0.0, 0.0, None, "as good"),
    ],
)
def test_error_stands_by_its_interval_and_the_margin(
    low: float, high: float, margin: float | None, standing: str
) -> None:
    assert compare_error(Estimate((low + high) / 2, low, high), margin).standing == standing


def test_an_error_without_an_interval_is_open() -> None:
    assert compare_error(Estimate(-3.0, None, None), 1.0).standing == "open"


@pytest.mark.parametrize(
    ("low", "high", "standing"),
    [(0.4, 0.6, "better"), (1.01, 1.2, "worse"), (0.98, 1.02, "as good"), (0.9, 1.1, "open")],
)
def test_latency_stands_by_the_interval_of_the_ratio(low: float, high: float, standing: str) -> None:
    assert compare_latency(Estimate((low + high) / 2, low, high)).standing == standing


def test_a_byte_less_is_smaller() -> None:
    assert compare_size(999, 1000).standing == "better"


@pytest.mark.parametrize(
    ("standings", "expected"),
    [
        (("as good", "better", "as good"), True),
        (("as good", "as good", "as good"), False),
        (("worse", "better", "better"), False),
        (("open", "better", "better"), False),
    ],
)
def test_dominating_takes_better_in_something_and_worse_in_nothing(
    standings: tuple[Standing, ...], expected: bool
) -> None:
    axes = {axis: Axis(one, "") for axis, one in zip(("error", "latency", "size"), standings, strict=True)}
    assert dominates(axes) is expected


def test_the_front_of_the_made_run_is_the_fast_the_small_and_the_accurate(front: Front) -> None:
    assert {p.name for p in front.places if p.on_front} == {"ptq-openvino", "ptq-onnxruntime", "qat-inductor"}


def test_fp32_is_dominated_by_the_same_network_on_a_faster_engine(front: Front) -> None:
    assert "fp32-openvino" in place(front, "fp32").dominated_by


def test_what_dominates_first_is_itself_on_the_front(front: Front) -> None:
    firsts = {p.dominated_by[0] for p in front.places if p.dominated_by}
    assert all(place(front, name).on_front for name in firsts)


def test_a_skipped_variant_has_no_place(front: Front) -> None:
    assert "ptq-inductor" not in {p.name for p in front.places}


def test_why_says_the_figures_of_the_one_that_dominates(front: Front) -> None:
    assert "faster" in place(front, "dynamic").why


def test_a_difference_that_does_not_separate_dominates_nothing(tmp_path: Path) -> None:
    same = {"ms": 2.0, "size": 1_000_000}
    front = front_of(
        tmp_path, a=Made("ptq", "openvino", 0.0, 1.0, **same), b=Made("bf16", "openvino", 0.02, 1.0, **same)
    )
    assert place(front, "a").on_front
    assert place(front, "b").on_front


def test_errors_are_compared_clip_by_clip_where_marginal_intervals_overlap(tmp_path: Path) -> None:
    same = {"ms": 2.0, "size": 1_000_000}
    out = make_run(
        tmp_path,
        variants=FP32
        | {"a": Made("ptq", "openvino", 0.0, 0.05, **same), "b": Made("bf16", "openvino", 0.1, 0.05, **same)},
    )
    evidence = read_evidence(out)
    a, b = (next(v for v in evidence.variants if v.name == name) for name in "ab")
    assert a.accuracy is not None
    assert b.accuracy is not None
    assert a.accuracy.mae_high is not None
    assert b.accuracy.mae_low is not None
    assert b.accuracy.mae_low < a.accuracy.mae_high
    difference = Pairs(evidence, AT).error("b", "a")
    assert difference is not None
    assert difference.low is not None
    assert difference.low > 0


def test_a_loss_that_may_be_over_the_margin_dominates_nothing(tmp_path: Path) -> None:
    # An eighth of the time and a seventh of the size, but on 20 clips its loss may be anything from none to 1.2.
    out = make_run(tmp_path, clips=20, variants=FP32 | {"a": Made("ptq", "openvino", 0.3, 1.9, ms=1.0, size=500_000)})
    assert place(pareto_front(read_evidence(out)), "fp32").on_front


def test_without_latency_a_variant_is_not_placed(tmp_path: Path) -> None:
    evidence = read_evidence(make_run(tmp_path))
    front = pareto_front(evidence, Point(threads=4, batch=1))
    assert {p.on_front for p in front.places} == {None}


def test_predictions_that_are_not_finite_leave_a_variant_unplaced(tmp_path: Path) -> None:
    front = pareto_front(read_evidence(make_run(tmp_path, nan={"ptq-openvino": 200})))
    assert "ptq-openvino" not in {p.name for p in front.places if p.on_front is not None}


def test_one_clip_dominates_nothing(tmp_path: Path) -> None:
    front = pareto_front(read_evidence(make_run(tmp_path, clips=1)))
    assert not any(p.dominated_by for p in front.places)


def test_without_fp32_there_is_a_front_of_the_others(tmp_path: Path) -> None:
    front = pareto_front(read_evidence(make_run(tmp_path, without=["fp32"])))
    assert {place.name for place in front.places if place.on_front} == {
        "ptq-openvino",
        "ptq-onnxruntime",
        "qat-inductor",
    }


def test_a_circle_that_noise_closes_stays_on_the_front() -> None:
    assert _settle({"a": ["c"], "b": ["a"], "c": ["b"], "d": []}) == {"a", "b", "c", "d"}


def test_what_hangs_on_the_front_is_off_it() -> None:
    assert _settle({"a": [], "b": ["a"], "c": ["b"]}) == {"a"}
