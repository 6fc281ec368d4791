"""One process writes an output folder at a time, and a process that was killed keeps nobody out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.evidence_runs import VARIANTS, make_run

from qray.cli import app
from qray.errors import QrayError
from qray.locks import out_held

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom qray.locks import out_held\n"
    "with out_held(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def run(*arguments: object) -> None:
    app([str(each) for each in arguments], standalone_mode=False)


def test_a_second_run_refuses_and_names_the_first(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    (tmp_path / "data").mkdir()
    first = rf"written to by `qray .*` \(process {holder.pid} on .*, since 20.*name another"
    with pytest.raises(QrayError, match=first):
        run("run", "all", "--data", tmp_path / "data", "--out", tmp_path)


def test_a_job_that_writes_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRAY_JOB", "qray-tiny-1a2b3c")
    with out_held(tmp_path), pytest.raises(QrayError, match=r"\(job qray-tiny-1a2b3c, process"), out_held(tmp_path):
        pass


def test_fresh_removes_nothing_of_a_run_that_goes_on(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    (tmp_path / "study.yaml").touch()
    (tmp_path / "units").mkdir()
    (tmp_path / "data").mkdir()
    with pytest.raises(QrayError, match="written to by"):
        run("run", "all", "--fresh", "--data", tmp_path / "data", "--out", tmp_path)
    assert (tmp_path / "units").is_dir()


def test_a_table_is_not_written_into_a_run_that_goes_on(tmp_path: Path) -> None:
    out = make_run(tmp_path / "out", variants={"fp32": VARIANTS["fp32"]}, clips=20)
    with out_held(out), pytest.raises(QrayError, match="written to by"):
        run("run", "table", out)


def test_one_that_was_killed_keeps_nobody_out(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with out_held(tmp_path):
        pass


def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), out_held(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
