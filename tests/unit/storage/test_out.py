"""What is asked of a finished run has the same answer for its URI as for its folder, and what it writes goes there."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest
from support.reports import small_run
from support.runs import main_here
from support.s3 import Server

from qray.storage.lease import Lease


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT in a folder."""
    out = small_run(tmp_path_factory.mktemp("small") / "out")
    assert main_here("run", "table", out).code == 0
    return out


@pytest.fixture
def stored(server: Server, local: Path, request: pytest.FixtureRequest) -> str:
    """The same OUT on the server, for one test."""
    return server.upload(local, "outs/" + re.sub(r"\W+", "-", request.node.name))


def name_of(uri: str) -> str:
    return uri.partition("?")[0].partition("bucket/")[2]


@pytest.mark.parametrize("question", [("show",), ("show", "--json"), ("pick",), ("pick", "--json")], ids=" ".join)
def test_a_question_has_the_same_answer(question: tuple[str, ...], stored: str, local: Path) -> None:
    here, there = (main_here(question[0], out, *question[1:]) for out in (local, stored))
    assert (there.code, there.stderr) == (here.code, here.stderr)
    uri = re.escape(stored.partition("?")[0]) + r"(/[^?\s]*)?\?[\w=&.:-]*"
    plain = re.sub(f"'?{uri}'?", rf"{local}\1", there.stdout)
    assert plain.split() == here.stdout.split()


def test_two_runs_are_compared_wherever_they_lie(stored: str, local: Path) -> None:
    done = main_here("diff", local, stored, "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["b"].startswith(stored.partition("?")[0])


@pytest.mark.parametrize(("words", "written"), [
    (("report",), {"report.html", "report.md"}), (("run", "table"), {"results.parquet"}),
], ids=["report", "table"])  # fmt: skip
def test_what_is_written_goes_there(words: tuple[str, ...], written: set[str], stored: str, server: Server) -> None:
    for name in written & server.names(name_of(stored)):
        (server.place(name_of(stored)) / name).delete()
    done = main_here(*words, stored)
    assert done.code == 0, done.stderr
    assert written <= server.names(name_of(stored))
    assert tempfile.gettempdir() not in done.stdout + done.stderr
    assert not any(name.startswith(".") for name in server.names(name_of(stored))), "it still holds the place"


def test_nothing_is_written_where_a_run_is_writing(stored: str, server: Server) -> None:
    lease = Lease(server.place(name_of(stored)), "a run's copy")
    lease.take()
    try:
        done = main_here("report", stored)
    finally:
        lease.release()
    assert done.code == 1
    assert "is being written to by `qray" in done.stderr


def test_what_is_no_run_is_a_sentence_with_the_uri(server: Server) -> None:
    done = main_here("pick", server.uri("nothing"))
    assert done.code == 1
    assert done.stderr.startswith("error: s3://bucket/nothing?")
    assert "not the output of a run (study.yaml is missing)" in done.stderr


def test_fresh_removes_nothing_where_no_run_was(server: Server, local: Path, tmp_path: Path) -> None:
    (server.place("precious") / "report.md").write_bytes(b"not of qray")
    done = main_here("run", "all", "--data", tmp_path, "--out", server.uri("precious"), "--fresh")
    assert done.code == 2
    assert "--fresh: s3://bucket/precious?" in done.stderr
    assert "holds no study.yaml" in done.stderr
    assert server.names("precious") == {"report.md"}


def test_fresh_removes_a_run_and_leaves_the_rest(stored: str, server: Server, tmp_path: Path) -> None:
    place = server.place(name_of(stored))
    (place / "notes.txt").write_bytes(b"mine")
    # There is no data set, so that it ends there.
    done = main_here("run", "all", "--data", tmp_path, "--out", stored, "--fresh")
    assert done.code == 1
    assert "no such file; a data set needs this list of clips" in done.stderr
    left = server.names(name_of(stored))
    assert "notes.txt" in left
    assert not any(name.startswith(("units/", "predictions/")) for name in left)


def test_a_data_set_is_not_made_in_a_store(server: Server) -> None:
    done = main_here("data", "synth", server.uri("set"))
    assert done.code == 2
    assert "a data set is written into a folder" in done.stderr
