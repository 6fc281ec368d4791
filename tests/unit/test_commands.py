"""What commands print and leave behind, in this process and without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qray.commands import run_stage, show_results
from qray.errors import QrayError, UsageError
from qray.results.timing import write_phases

PHASES = {"load qray": 1.0, "start Ray": 5.0, "train, build and evaluate": 10.0}


def table(data: Path, out: Path, *settings: str, as_json: bool = False) -> None:
    """`qray run table`: the one stage that needs no Ray."""
    run_stage("table", "quickstart", data, out, settings, False, as_json, None)


def test_a_run_that_did_no_work_leaves_the_record_of_the_one_that_did(tiny_dataset: Path, tmp_path: Path) -> None:
    write_phases(tmp_path, PHASES, 16.0, 0.0)
    before = (tmp_path / "units" / "phases.json").read_bytes()
    table(tiny_dataset, tmp_path)
    assert (tmp_path / "units" / "phases.json").read_bytes() == before


def test_a_run_prints_where_the_time_went(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_phases(tmp_path, PHASES, 16.0, 0.0)
    table(tiny_dataset, tmp_path)
    assert "Where the time went" in capsys.readouterr().out


def test_show_prints_where_the_time_went(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(tiny_dataset, tmp_path)
    write_phases(tmp_path, PHASES, 16.0, 0.0)
    capsys.readouterr()
    show_results(tmp_path, as_json=False)
    assert "start Ray" in capsys.readouterr().out


def test_with_json_stdout_holds_json_alone(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_phases(tmp_path, PHASES, 16.0, 0.0)
    table(tiny_dataset, tmp_path, as_json=True)
    assert {row["status"] for row in json.loads(capsys.readouterr().out)} <= {"ok", "skipped", "failed"}


def test_out_may_hold_the_output_of_another_study(tiny_dataset: Path, tmp_path: Path) -> None:
    table(tiny_dataset, tmp_path)
    table(tiny_dataset, tmp_path, "name=other")
    assert (tmp_path / "study.yaml").read_text().startswith("name: other")


def test_fresh_removes_what_a_run_left_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("study.yaml", "results.parquet", "units/train-1.json", "artifacts/k/model", "notes.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(QrayError, match="FileList"):
        run_stage("train", "quickstart", tmp_path / "empty", out, [], True, False, None)
    assert {"notes.txt"} == {path.name for path in out.iterdir()} - {"study.yaml"}


def test_fresh_refuses_a_folder_that_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    with pytest.raises(UsageError, match=r"no study\.yaml"):
        run_stage("train", "quickstart", None, tmp_path, [], True, False, None)
