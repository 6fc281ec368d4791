"""What commands print and leave behind, in this process and without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.evidence_runs import VARIANTS, make_run
from support.videos import numbered_frames, write_file_list, write_video

from qray.cli import app
from qray.commands import check_data, write_table_anew
from qray.errors import QrayError, UsageError
from qray.questions import show_results

FEW = {name: VARIANTS[name] for name in ("fp32", "ptq-openvino")}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """OUT of a finished run."""
    return make_run(tmp_path / "out", variants=FEW, clips=20, table=True)


def test_the_table_is_printed_with_where_the_time_went(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table_anew(out, None, as_json=False)
    printed = capsys.readouterr().out
    assert "ptq-openvino" in printed
    assert "Where the time went" in printed


def test_show_prints_where_the_time_went(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_results(out, as_json=False)
    assert "start Ray" in capsys.readouterr().out


def test_show_prints_a_table_that_was_copied_without_its_run(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "run.json").unlink()
    show_results(out, as_json=False)
    assert "ptq-openvino" in capsys.readouterr().out


def test_with_json_stdout_holds_json_alone(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table_anew(None, out, as_json=True)
    assert {row["status"] for row in json.loads(capsys.readouterr().out)} == {"ok"}


@pytest.mark.parametrize("folders", [(None, None), (Path("a"), Path("b"))])
def test_a_table_is_of_one_folder(folders: tuple[Path | None, Path | None]) -> None:
    with pytest.raises(UsageError, match="name one folder"):
        write_table_anew(*folders, as_json=False)


def test_fresh_removes_what_a_run_left_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("study.yaml", "results.parquet", "units/train-1.json", "artifacts/k/model", "notes.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(QrayError, match="FileList"):
        app(["run", "train", "--data", str(tmp_path / "empty"), "--out", str(out), "--fresh"], standalone_mode=False)
    assert {"notes.txt"} == {path.name for path in out.iterdir()} - {"study.yaml"}


def test_fresh_refuses_a_folder_that_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    with pytest.raises(UsageError, match=r"no study\.yaml"):
        app(["run", "train", "--out", str(tmp_path), "--fresh"], standalone_mode=False)


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
