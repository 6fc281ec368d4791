"""`qray pick` and `qray diff` as a script meets them: exit codes, JSON, and sentences for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.evidence_runs import VARIANTS, make_run
from support.runs import main_here, qray

FEW = {name: VARIANTS[name] for name in ("fp32", "bf16-openvino", "ptq-openvino", "ptq-onnxruntime")}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), variants=FEW)


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("worse"), variants=FEW, change={"ptq-openvino": {"delta": 2.0}})


def test_pick_says_the_one_to_ship_first(out: Path) -> None:
    assert main_here("pick", out).stdout.splitlines()[0] == "Ship ptq-openvino"


def test_pick_ends_with_3_where_none_qualifies(out: Path) -> None:
    assert qray("pick", out, "--max-size-mb", "0.1").code == 3


def test_pick_says_on_stderr_which_bound_fails_by_how_much(out: Path) -> None:
    done = main_here("pick", out, "--max-size-mb", "0.1", "--json")
    assert "size 0.87 MB is 0.77 MB over --max-size-mb 0.1" in done.stderr


def test_pick_as_json_holds_the_reason_of_every_variant(out: Path) -> None:
    choice = json.loads(main_here("pick", out, "--json").stdout)
    named = [choice["picked"], choice["runner_up"], *choice["others"]]
    assert {one["name"] for one in named if one["why"]} == set(FEW)


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1"])
def test_a_bound_that_is_no_positive_number_is_bad_usage(out: Path, value: str) -> None:
    assert main_here("pick", out, "--margin", value).code == 2


def test_diff_ends_with_4_on_a_regression(out: Path, worse: Path) -> None:
    assert qray("diff", out, worse).code == 4


def test_diff_ends_with_0_where_there_is_none(worse: Path, out: Path) -> None:
    assert main_here("diff", worse, out).code == 0


def test_diff_names_each_regression(out: Path, worse: Path) -> None:
    lines = [line for line in main_here("diff", out, worse).stdout.splitlines() if line.startswith("Regression: ")]
    assert len(lines) == 3, "the verdict, a guardrail, and the error"


def test_diff_as_json_holds_the_regressions(out: Path, worse: Path) -> None:
    assert len(json.loads(main_here("diff", out, worse, "--json").stdout)["regressions"]) == 3


@pytest.mark.parametrize("command", [["pick"], ["diff", "."]], ids=" ".join)
def test_a_folder_that_holds_no_run_is_an_error_in_a_sentence(tmp_path: Path, command: list[str]) -> None:
    done = main_here(*command, tmp_path)
    assert (done.code, done.stderr.count("\n"), "Traceback" in done.stderr) == (1, 1, False)


@pytest.mark.parametrize("command", ["pick", "diff"])
def test_help_documents_the_exit_code(command: str) -> None:
    code = {"pick": "exit code 3", "diff": "exit code 4"}[command]
    assert code in " ".join(main_here(command, "--help").stdout.split())
