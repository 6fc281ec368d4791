"""The verdict in words: what a reader is told first, on runs in which the right verdict is known."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.evidence_runs import VARIANTS, make_run
from support.reports import report_of, small_run, texts

from qray.answers.diff import diff_runs
from qray.answers.pick import choose
from qray.judge.evidence import Evidence
from qray.judge.judge import read_evidence
from qray.report.headline import choice_of, headline
from qray.report.table import table as table_blocks
from qray.words.card import model_card
from qray.words.document import Grid, Headline
from qray.words.markdown import to_markdown
from qray.words.show import print_results, read_results
from qray.words.show_answers import print_choice, print_diff

HARMED = {name: {"delta": 3.0} for name in VARIANTS if name != "fp32"}
#: Switches of `make_run` for runs that carry no verdict, and what must be said of each.
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no FP32": ({"without": ["fp32"]}, "FP32 has no predictions that can be used (not finished"),
    "one clip": ({"clips": 1}, "1 clip in TEST"),
    "FP32 predicts NaN": ({"nan": {"fp32": 200}}, "FP32 has no predictions that can be used"),
    "FP32 predicts a constant": ({"constant": ["fp32"]}, "FP32 does not beat the mean predictor"),
}


def told(evidence: Evidence) -> Headline:
    return headline(evidence, choice_of(evidence))


def table(evidence: Evidence) -> str:
    return texts(tuple(table_blocks(evidence, None)))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return read_evidence(make_run(tmp_path_factory.mktemp("good")))


def test_the_headline_names_the_variant_to_ship(good: Evidence) -> None:
    assert told(good).title == "Ship ptq-openvino"


def test_the_first_sentence_carries_speed_size_difference_and_margin(good: Evidence) -> None:
    first = told(good).sentences[0]
    for words in ("x faster than FP32 eager", "a quarter of its size", "difference +0.05 (95 %", "the margin of 1 "):
        assert words in first


def test_the_runner_up_is_named(good: Evidence) -> None:
    assert any(sentence.startswith("Runner-up: bf16-openvino") for sentence in told(good).sentences)


def test_where_nothing_is_good_enough_none_is_to_be_shipped(tmp_path: Path) -> None:
    found = told(read_evidence(make_run(tmp_path, change=HARMED)))
    assert found.title == "Ship none of these variants"
    assert found.tone == "bad"


@pytest.mark.parametrize(("switches", "said"), BROKEN.values(), ids=BROKEN)
def test_a_run_without_a_verdict_says_why(tmp_path: Path, switches: dict[str, Any], said: str) -> None:
    found = told(read_evidence(small_run(tmp_path, **switches)))
    assert found.title.startswith("No verdict")
    assert said in " ".join(found.sentences)


@pytest.mark.parametrize("switches", [switches for switches, _ in BROKEN.values()], ids=BROKEN)
def test_a_run_without_a_verdict_claims_none_in_its_table(tmp_path: Path, switches: dict[str, Any]) -> None:
    evidence = read_evidence(small_run(tmp_path, **switches))
    grid = table_blocks(evidence, None)[0]
    assert isinstance(grid, Grid)
    words = {cell.text for row in grid.rows for cell in row}
    assert not words & {"non-inferior", "inferior", "inconclusive", "yes"}


@pytest.mark.parametrize("switches", [switches for switches, _ in BROKEN.values()], ids=BROKEN)
def test_a_run_without_a_verdict_has_a_report_all_the_same(tmp_path: Path, switches: dict[str, Any]) -> None:
    anchors = {section.anchor for section in report_of(small_run(tmp_path, **switches)).sections}
    assert {"table", "front", "predictions", "speed", "timeline", "worst", "rejected", "facts"} <= anchors


def test_a_run_that_lost_a_file_says_so(tmp_path: Path) -> None:
    out = small_run(tmp_path)
    (out / "rejected.parquet").unlink()
    assert any("rejected.parquet" in note for note in report_of(out).notes)


def test_an_inconclusive_variant_says_how_many_clips_would_settle_it(good: Evidence) -> None:
    assert "clips would settle it" in table(good)


def test_a_variant_that_does_not_pay_is_flagged(good: Evidence) -> None:
    assert "dynamic: INT8 does not pay here" in table(good)


def test_what_was_skipped_or_failed_keeps_its_reason(good: Evidence) -> None:
    said = table(good)
    assert "ptq-inductor: skipped: no C++ compiler (g++) was found" in said
    assert "qat-w4-inductor: failed: int8_mac_share 0.42 is under 0.95" in said


def test_a_copied_run_has_the_same_report(tmp_path: Path) -> None:
    found = report_of(small_run(tmp_path))
    assert str(tmp_path) not in " ".join([*found.headline.sentences, *found.notes])


@pytest.mark.parametrize(
    "how", [{"clips": 1}, {"constant": ["fp32"]}, {"nan": {"fp32": 200}}], ids=["one clip", "constant FP32", "NaN FP32"]
)
def test_a_figure_that_there_is_none_of_is_no_word(tmp_path: Path, how: dict[str, Any]) -> None:
    out = small_run(tmp_path / "out", table=True, **how)
    evidence = read_evidence(out)
    file = io.StringIO()
    console = Console(file=file, width=300)
    print_results(read_results(out), console)
    print_choice(choose(evidence), "fp32", console)
    print_diff(diff_runs(evidence, evidence), console)
    cards = [model_card(evidence, variant) for variant in evidence.variants]
    said = "\n".join([file.getvalue(), to_markdown(report_of(out), "report"), *cards])
    assert re.findall(r".*(?<![\w.-])(?:nan|NaN|inf|None)(?![\w.-]).*", said) == []


def test_what_a_quantizer_left_in_fp32_is_said_wherever_the_variant_is_listed(tmp_path: Path) -> None:
    """A row called INT8 of which something is none says so."""
    left = {"ptq-openvino": {"notes": {"fp32_layers": ["backbone.se.fc1", "backbone.se.fc2"]}, "int8": 0.984}}
    evidence = read_evidence(make_run(tmp_path, change=left, table=True))
    said = (
        "ptq-openvino: 2 convolutions in FP32, left so by a rule of the engine's quantizer; 98.4% of the "
        "multiply-accumulates are INT8"
    )
    assert said in table(evidence)
    assert next(v.row.fp32_layers for v in evidence.variants if v.name == "ptq-openvino") == 2
    text = io.StringIO()
    print_results(read_results(evidence.out), Console(file=text, width=400))
    assert said in text.getvalue()
    assert text.getvalue().count("in FP32, left so") == 1


def test_which_layers_a_mix_keeps_in_fp32_is_said_wherever_the_variant_is_listed(tmp_path: Path) -> None:
    found = {"keep_fp32": ["conv1", "layer1.0.conv2"], "layers": 20, "evaluations": 5}
    mixed = {"ptq-openvino": {"notes": {"mixed": found}, "int8": 0.9}}
    evidence = read_evidence(make_run(tmp_path, change=mixed, table=True))
    variant = next(v for v in evidence.variants if v.name == "ptq-openvino")
    said = "mixed precision: 2 of 20 layers in FP32 (conv1, layer1.0.conv2), 5 evaluations"
    assert f"ptq-openvino: {said}" in table(evidence)
    assert said in model_card(evidence, variant).replace("\n", " ")
    text = io.StringIO()
    print_results(read_results(evidence.out), Console(file=text, width=400))
    assert text.getvalue().count(said) == 1
    row = variant.row
    assert (row.kept_fp32, row.kept_layers, row.layers, row.evaluations) == ("conv1, layer1.0.conv2", 2, 20, 5)
