"""A variant that a guardrail refuses is refused everywhere: no page calls it good for its mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.doctored_runs import FEW, clamped, doctored_run, noise, predictions_of, rewrite
from support.evidence_runs import make_run
from support.outcomes import NOISE, STUDY, TARGET, baseline, fp32, outcome, predictions, table

from qray.answers.diff import diff_runs
from qray.answers.pareto import pareto_front
from qray.answers.pick import choose
from qray.answers.seeds import over_seeds
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.judge import read_evidence
from qray.judge.row import Row
from qray.report.headline import choice_of, headline
from qray.trackers.fields import note, row_tags
from qray.words.card import model_card
from qray.words.card_words import verdict_words as card_verdict
from qray.words.phrases import remarks, verdict_word
from qray.words.show import print_results
from qray.words.show_answers import print_choice, print_seeds

WHY = "is that of 4 clips"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return read_evidence(doctored_run(tmp_path_factory.mktemp("honest"), noise(0.3)))


@pytest.fixture(scope="module")
def doctored(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return read_evidence(doctored_run(tmp_path_factory.mktemp("doctored"), clamped(4, 0)))


def variant(evidence: Evidence) -> VariantEvidence:
    return next(v for v in evidence.variants if v.name == "ptq-openvino")


def printed(show: Callable[[Console], None]) -> str:
    text = StringIO()
    show(Console(file=text, width=4000))
    return text.getvalue()


def test_pick_prints_why(doctored: Evidence) -> None:
    assert WHY in printed(lambda console: print_choice(choose(doctored), "fp32", console))


def test_pick_prints_the_guardrails_of_the_one_to_ship(honest: Evidence) -> None:
    text = printed(lambda console: print_choice(choose(honest), "fp32", console))
    assert "guardrails hold: worst_class" in text


def test_the_headline_of_the_report_ships_none(doctored: Evidence) -> None:
    found = headline(doctored, choice_of(doctored))
    assert found.title == "Ship none of these variants"
    assert "1 non-inferior, but not to be shipped" in found.sentences[-1]


def test_the_headline_says_that_guardrails_hold(honest: Evidence) -> None:
    assert any("No guardrail is broken" in sentence for sentence in headline(honest, choice_of(honest)).sentences)


def test_the_reports_table_and_remarks_say_it(doctored: Evidence) -> None:
    assert verdict_word(variant(doctored)) == "non-inferior, but not to be shipped"
    assert any("not to be shipped" in remark and WHY in remark for remark in remarks(variant(doctored)))


def test_the_card_says_it_first_and_among_its_caveats(doctored: Evidence) -> None:
    assert card_verdict(doctored, variant(doctored)).startswith("**Not to be shipped**")
    caveats = model_card(doctored, variant(doctored)).partition("## Caveats")[2]
    assert WHY in caveats


def test_the_card_of_an_honest_variant_says_that_guardrails_hold(honest: Evidence) -> None:
    assert "No guardrail is broken" in card_verdict(honest, variant(honest))


def test_it_is_on_no_front(doctored: Evidence) -> None:
    place = next(place for place in pareto_front(doctored).places if place.name == "ptq-openvino")
    assert (place.on_front, WHY in place.why) == (False, True)


def test_it_dominates_nothing(doctored: Evidence) -> None:
    assert all("ptq-openvino" not in place.dominated_by for place in pareto_front(doctored).places)


def test_a_guardrail_that_held_is_a_regression_where_it_is_broken(honest: Evidence, doctored: Evidence) -> None:
    (words,) = [words for words in diff_runs(honest, doctored, tolerance=5.0).regressions if "guardrail" in words]
    assert WHY in words


def test_one_that_was_broken_before_is_none(honest: Evidence, doctored: Evidence) -> None:
    assert diff_runs(doctored, doctored).regressions == ()
    assert not any("guardrail" in words for words in diff_runs(doctored, honest).regressions)


def test_guardrails_of_b_are_those_that_a_declared(honest: Evidence, doctored: Evidence) -> None:
    lax = doctored.study.verdict.model_copy(
        update={"guardrails": doctored.study.verdict.guardrails.model_copy(update={"tied": 100})}
    )
    loosened = replace(doctored, study=doctored.study.model_copy(update={"verdict": lax}))
    assert any("guardrail" in words for words in diff_runs(honest, loosened, tolerance=5.0).regressions)


def test_mlflow_is_told(doctored: Evidence) -> None:
    assert "not to be shipped" in note(doctored)


def test_an_empty_guardrail_takes_back_what_mlflow_was_told() -> None:
    tags = row_tags(Row(variant="v", key="k", method="ptq", engine="openvino"))
    assert (tags["guardrails"], tags["shippable"]) == ("", "")


def test_over_seeds_one_refused_run_refuses_the_method(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), variants=FEW, seed=seed) for seed in range(3)]
    own = predictions_of(runs[1], "ptq-openvino")["prediction"].to_numpy()
    rewrite(runs[1], "ptq-openvino", np.maximum(own, np.sort(own)[5]))
    found = over_seeds([read_evidence(run) for run in runs])
    text = printed(lambda console: print_seeds(found, console))
    assert "ptq-openvino: not to be shipped: seed 1: the lowest prediction" in text


def test_the_table_shows_it_and_says_why() -> None:
    own = TARGET + NOISE + np.random.default_rng(0).normal(0, 0.1, len(TARGET))
    clipped = outcome("ptq", "ptq", "openvino", ms=9.0, predictions=predictions(np.maximum(own, np.sort(own)[3])))
    found = table(fp32(), clipped, baseline())
    row = next(row for row in found.to_pylist() if row["variant"] == "ptq")
    assert (row["verdict"], row["shippable"], row["tied_low"]) == ("non-inferior", False, 4)
    text = printed(lambda console: print_results(found, console))
    assert "non-inferior !" in text
    assert f"! ptq: not to be shipped: {row['guardrails']}" in text


def test_a_study_that_names_no_such_guardrail_is_told_the_key() -> None:
    with pytest.raises(ValueError, match=r"verdict\.guardrails\.ties"):
        type(STUDY).model_validate(STUDY.canonical() | {"verdict": {"guardrails": {"ties": 2}}})
