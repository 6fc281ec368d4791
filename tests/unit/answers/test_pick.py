"""The variant to ship: runs in which the right one is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.evidence_runs import VARIANTS, key_of, make_run

from qray.answers.bounds import Bounds
from qray.answers.pick import Choice, choose
from qray.errors import UsageError
from qray.judge.evidence import Evidence
from qray.judge.judge import read_evidence


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return read_evidence(make_run(tmp_path_factory.mktemp("run")))


def why_not(choice: Choice, name: str) -> str:
    found = next(c for c in choice.others if c.name == name)
    return found.out or ""


def picked(choice: Choice) -> str | None:
    return choice.picked.name if choice.picked else None


def test_the_fastest_that_is_non_inferior_is_picked(evidence: Evidence) -> None:
    assert picked(choose(evidence)) == "ptq-openvino"


def test_the_runner_up_is_the_next_fastest(evidence: Evidence) -> None:
    runner_up = choose(evidence).runner_up
    assert runner_up is not None
    assert runner_up.name == "bf16-openvino"


def test_the_artifact_folder_is_named(evidence: Evidence) -> None:
    choice = choose(evidence)
    assert choice.picked is not None
    assert choice.picked.artifact == evidence.out / "artifacts" / key_of("build", "ptq-openvino")


def test_an_artifact_that_is_gone_is_said_to_be(evidence: Evidence) -> None:
    assert any("is not there" in note for note in choose(evidence).notes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ptq-onnxruntime", "inferior"),
        ("dynamic", "inconclusive"),
        ("ptq-inductor", "no C++ compiler"),
        ("qat-w4-inductor", "int8_mac_share"),
        ("fp32", "compared to"),
        ("finetune", "a control"),
    ],
)
def test_each_other_one_says_why_it_is_out(evidence: Evidence, name: str, words: str) -> None:
    assert words in why_not(choose(evidence), name)


def test_one_that_qualifies_says_how_much_slower_it_is(evidence: Evidence) -> None:
    assert "x the time" in choose(evidence).passed_over["fp32-openvino"]


def test_a_latency_must_meet_its_bound_with_its_whole_interval(evidence: Evidence) -> None:
    choice = choose(evidence)
    assert choice.picked is not None
    latency = choice.picked.latency_ms
    assert latency is not None
    assert latency.high is not None
    between = (latency.value + latency.high) / 2
    assert "interval reaches" in why_not(choose(evidence, Bounds(max_latency_ms=between)), "ptq-openvino")


def test_a_bound_on_memory_rules_the_fastest_out(evidence: Evidence) -> None:
    assert picked(choose(evidence, Bounds(max_rss_mb=100.0))) == "fp32-onnxruntime"


def test_where_no_size_fits_the_nearest_says_by_how_much(evidence: Evidence) -> None:
    choice = choose(evidence, Bounds(max_size_mb=0.5))
    assert "ptq-openvino: size 0.87 MB is 0.37 MB over --max-size-mb 0.5" in choice.why


def test_a_bound_on_memory_that_was_not_measured_is_not_met(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    for record in (path / "units").glob("memory-*.json"):
        record.unlink()
    assert "cannot be shown" in why_not(choose(read_evidence(path), Bounds(max_rss_mb=1e6)), "ptq-openvino")


def test_where_no_size_fits_nothing_is_picked(evidence: Evidence) -> None:
    assert picked(choose(evidence, Bounds(max_size_mb=0.5))) is None


def test_a_stricter_margin_picks_another(evidence: Evidence) -> None:
    assert picked(choose(evidence, Bounds(margin=0.1))) == "bf16-openvino"


def test_a_margin_given_after_the_run_is_said_not_to_be_declared(evidence: Evidence) -> None:
    assert any("not declared beforehand" in note for note in choose(evidence, Bounds(margin=0.1)).notes)


def test_the_studys_own_margin_needs_no_such_note(evidence: Evidence) -> None:
    assert not any("declared" in note for note in choose(evidence, Bounds(margin=1.0)).notes)


def test_where_nothing_is_non_inferior_the_nearest_says_by_how_much(tmp_path: Path) -> None:
    variants = {name: VARIANTS[name] for name in ("fp32", "ptq-onnxruntime")}
    choice = choose(read_evidence(make_run(tmp_path, variants=variants)))
    assert "over it" in choice.why


def test_where_nothing_qualifies_fp32_is_offered(tmp_path: Path) -> None:
    variants = {name: VARIANTS[name] for name in ("fp32", "ptq-onnxruntime")}
    choice = choose(read_evidence(make_run(tmp_path, variants=variants)))
    assert "fp32 itself" in choice.why


@pytest.mark.parametrize("ms", [1.498, 1.502], ids=["a hair faster", "a hair slower"])
def test_of_two_as_fast_the_smaller_is_picked(tmp_path: Path, ms: float) -> None:
    # The rounds tell a tenth of a per cent apart no better than chance does, whichever median is the lower.
    change = {"bf16-openvino": {"ms": ms, "size": 800_000}}
    choice = choose(read_evidence(make_run(tmp_path, change=change)))
    assert (picked(choice), "do not separate" in choice.why) == ("bf16-openvino", True)


def test_of_two_as_fast_and_as_small_the_more_accurate_is_picked(tmp_path: Path) -> None:
    change = {"bf16-openvino": {"ms": 1.5, "size": 872_000}, "ptq-openvino": {"delta": 0.4}}
    assert picked(choose(read_evidence(make_run(tmp_path, change=change)))) == "bf16-openvino"


def test_one_that_does_not_beat_the_mean_predictor_is_not_picked(tmp_path: Path) -> None:
    wide = {"fp32": {"delta": 12.0}, "ptq-openvino": {"delta": 12.0}}
    variants = {name: VARIANTS[name] for name in wide}
    choice = choose(read_evidence(make_run(tmp_path, variants=variants, change=wide)))
    assert "does not beat the mean predictor" in why_not(choice, "ptq-openvino")


def test_a_verdict_that_holms_correction_takes_back_is_noted(tmp_path: Path) -> None:
    # By itself the upper bound is just under the margin of 1; with eight others beside it that is no longer enough.
    weak = {"ptq-openvino": {"delta": 0.78, "sd": 1.5}}
    choice = choose(read_evidence(make_run(tmp_path, change=weak)))
    assert [note for note in choice.notes if "Holm" in note and "inconclusive" in note]


def test_a_point_that_was_not_measured_is_bad_usage(evidence: Evidence) -> None:
    with pytest.raises(UsageError, match="1 thread, batch 1"):
        choose(evidence, threads=8)


@pytest.mark.parametrize(
    "bad",
    [
        {"without": ["fp32"]},
        {"clips": 1},
        {"constant": ["fp32"]},
    ],
    ids=["no FP32", "one clip", "constant FP32"],
)
def test_a_run_that_carries_no_verdict_has_nothing_to_ship(tmp_path: Path, bad: dict[str, object]) -> None:
    assert picked(choose(read_evidence(make_run(tmp_path, **bad)))) is None  # type: ignore[arg-type]


def test_a_variant_with_predictions_that_are_not_finite_is_not_picked(tmp_path: Path) -> None:
    assert picked(choose(read_evidence(make_run(tmp_path, nan={"ptq-openvino": 3})))) == "bf16-openvino"
