"""Files of OUT through a log, in lines: what arrives is what was sent, whole, or a sentence."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from support.reports import small_run
from support.runs import main_here

from qray.errors import QrayError, UsageError
from qray.jobs.fetch import FETCHED, Pieces, check_destination, unpack
from qray.jobs.send import LINE_BYTES, send


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of a run, with a file of several lines, one of a writer that was killed, and what nobody asks for."""
    out = small_run(tmp_path_factory.mktemp("there") / "out")
    (out / "report.html").write_bytes(os.urandom(3 * LINE_BYTES))
    (out / "units" / ".tmp-build-1.json").touch()
    (out / "checkpoints" / "k").mkdir(parents=True)
    (out / "checkpoints" / "k" / "epoch-0000.pt").touch()
    return out


def log_of(out: Path, *artifacts: str, **how: int) -> str:
    """What a job prints that sends OUT."""
    log = io.BytesIO(b"")
    log.write(b"Running entrypoint for job x: python -m qray.jobs.send\n")
    send(out, artifacts, log, **how)
    return log.getvalue().decode()


def received(log: str, folder: Path, step: int) -> Path:
    """A folder with what a log holds that arrives in texts of `step` characters."""
    with (folder / "archive").open("wb") as file:
        pieces = Pieces(file)
        whole = [pieces.hear(log[at : at + step]) for at in range(0, len(log), step)]
    assert whole[-1]
    assert not any(whole[:-1])
    unpack(folder / "archive", folder / "here")
    return folder / "here"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("step", [1000, 20_000, 10**9])
def test_what_is_sent_arrives_however_the_log_is_cut(out: Path, tmp_path: Path, step: int) -> None:
    there, here = files(out), files(received(log_of(out), tmp_path, step))
    assert here.items() <= there.items()
    assert {name.partition("/")[0] for name in there.keys() - here.keys()} == {"checkpoints", "units"}
    assert main_here("show", tmp_path / "here").stdout == main_here("show", out).stdout


def test_a_line_that_is_damaged_or_missing_is_a_sentence(out: Path, tmp_path: Path) -> None:
    first, *lines = log_of(out).splitlines(keepends=True)
    damaged = [first, lines[0].replace("A", "B"), *lines[1:]]
    for log in (damaged, [first, *lines[1:]], [first, "+@@\n"]):
        with pytest.raises(QrayError, match="fetch it again"):
            Pieces(io.BytesIO()).hear("".join(log))
    # Without its end it is not whole.
    assert not Pieces(io.BytesIO()).hear("".join([first, *lines[:-1]]))


def test_more_than_may_go_through_a_log_is_a_sentence_and_nothing_is_sent(out: Path) -> None:
    log = io.BytesIO()
    with pytest.raises(QrayError, match=r"at most .* GB go through the dashboard; ask for fewer artifacts"):
        send(out, (), log, most_bytes=LINE_BYTES)
    assert log.getvalue() == b""


def test_a_folder_that_holds_no_run_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(QrayError, match="is not the output of a run"):
        log_of(tmp_path)


def test_an_artifact_is_sent_where_it_is_asked_for(out: Path, tmp_path: Path) -> None:
    key = json.loads((out / "run.json").read_text())["variants"]["fp32"]["build"]
    (out / "artifacts" / key / "deep").mkdir(parents=True)
    (out / "artifacts" / key / "deep" / "model.bin").write_bytes(b"1")
    assert (received(log_of(out, "fp32"), tmp_path, 10**9) / "artifacts" / key / "deep" / "model.bin").is_file()
    with pytest.raises(QrayError, match="no artifact of a variant 'nobody'; those it has: fp32"):
        log_of(out, "nobody")


@pytest.mark.parametrize("what", ["../out", "/etc/x", "link"])
def test_an_archive_writes_nowhere_but_into_its_folder(tmp_path: Path, what: str) -> None:
    entry = tarfile.TarInfo(what)
    if what == "link":
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
    with tarfile.open(tmp_path / "archive", "w:gz") as archive:
        archive.addfile(entry)
    with pytest.raises(QrayError, match="no file of a run"):
        unpack(tmp_path / "archive", tmp_path / "here")
    assert not (tmp_path / "out").exists()


def test_only_what_was_fetched_from_there_is_replaced(tmp_path: Path) -> None:
    source = {"job": "a", "out": "~/x"}
    for folder in (tmp_path / "none", tmp_path):
        check_destination(folder, source)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="was not fetched; name another folder"):
        check_destination(tmp_path, source)
    (tmp_path / FETCHED).write_text(json.dumps(source))
    check_destination(tmp_path, source)
    with pytest.raises(UsageError, match="was fetched from another run"):
        check_destination(tmp_path, source | {"job": "b"})
