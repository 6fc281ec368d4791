"""What commands print and leave behind, in this process and without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from videos import numbered_frames, write_file_list, write_video

from qray.commands import check_data, run_stage, show_results
from qray.errors import QrayError, UsageError
from qray.measure.isa import this_machine
from qray.orchestrate.data_set import load_manifest
from qray.orchestrate.run_record import write_run
from qray.orchestrate.store import Store
from qray.results.timing import write_phases
from qray.study_files import load_study

PHASES = {"load qray": 1.0, "start Ray": 5.0, "train, build and evaluate": 10.0}


def table(data: Path, out: Path, *settings: str, as_json: bool = False) -> None:
    """`qray run table`, the one stage that needs no Ray, of a run that came as far as checking its data set."""
    store = Store(out)
    load_manifest(store, data, load_study("quickstart").data)
    write_run(store, "all", 0.0, {}, this_machine())
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


def test_a_split_of_one_clip_has_no_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("a", 50, "TRAIN"), ("b", 60, "TRAIN"), ("c", 52, "VAL"), ("d", 40, "TEST"), ("e", 50, "TEST")]
    for number, (name, *_) in enumerate(rows):
        write_video(tmp_path / "Videos" / f"{name}.avi", numbered_frames(3 + number, 16, 16))
    write_file_list(tmp_path, rows, ("FileName", "EF", "Split"))
    check_data(tmp_path, "quickstart", [], as_json=False)
    printed = capsys.readouterr().out
    assert "VAL: 1 clip, EF 52.0\n" in printed
    assert "TEST: 2 clips, EF 45.0 +- 7.1" in printed
    assert "nan" not in printed


@pytest.mark.parametrize("as_json", [False, True])
def test_copies_of_a_video_in_two_splits_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    rows = [("a", 50, "TRAIN"), ("b", 60, "TRAIN"), ("c", 52, "VAL"), ("d", 40, "TEST")]
    for number, (name, *_) in enumerate(rows):
        write_video(tmp_path / "Videos" / f"{name}.avi", numbered_frames(3 + number % 3, 16, 16))
    write_file_list(tmp_path, rows, ("FileName", "EF", "Split"))
    check_data(tmp_path, "quickstart", [], as_json)
    assert "a (TRAIN), d (TEST) have the same content; they are in several splits" in capsys.readouterr().out
