"""Where a local Ray's files go: TMPDIR where its path will do, else a short one; and what is said if it is late."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import ray

from qray.errors import QrayError
from qray.graph.local_ray import ROOT_BYTES, ray_root, start_local_ray


@pytest.fixture(autouse=True)
def no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither variable says anything."""
    for name in ("RAY_TMPDIR", "TMPDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def long(tmp_path: Path) -> str:
    """A writable folder whose path leaves no room for a socket's name."""
    folder = tmp_path / ("x" * 80)
    folder.mkdir()
    return str(folder)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_short_folder_that_is_named_is_taken(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "/var/tmp")
    assert ray_root() == Path("/var/tmp")


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_one_gives_way_to_a_short_one(variable: str, long: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, long)
    assert ray_root() == Path("/tmp")


@pytest.mark.parametrize("folder", ["/proc", "/dev/null/x"])
def test_one_that_cannot_be_written_gives_way(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", folder)
    assert ray_root() == Path("/tmp")


def test_bytes_are_counted_not_letters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = Path("/tmp") / ("\u00e9" * (ROOT_BYTES - len("/tmp/") - 1))
    folder.mkdir(exist_ok=True)
    try:
        monkeypatch.setenv("TMPDIR", str(folder))
        assert (len(str(folder)) <= ROOT_BYTES, ray_root()) == (True, Path("/tmp"))
    finally:
        folder.rmdir()


def test_without_any_folder_the_sentence_names_the_variable_and_a_value(
    long: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qray.scratch.writable", lambda folder: os.fspath(folder) == long)
    monkeypatch.setenv("TMPDIR", long)
    with pytest.raises(QrayError, match=r"set RAY_TMPDIR to such a folder, for example RAY_TMPDIR=/"):
        ray_root()


@pytest.mark.parametrize(("said", "starts"), [
    ("The current node timed out during startup. This could happen", 3),
    ("\nThe last 20 lines of /tmp/ray/dashboard.log (it contains the error message from the dashboard):", 3),
    ("Failed to start a dashboard.", 3), ("The object store may not be larger than the memory.", 1),
])  # fmt: skip
def test_a_ray_whose_processes_are_late_is_started_again_and_then_a_sentence(
    said: str, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def late(**options: Any) -> None:
        begun.append(options)
        # As Ray's node.py and services.py raise it, a bare Exception.
        raise Exception(said)

    monkeypatch.setattr(ray, "init", late)
    expected = rf"cannot start a local Ray: {re.escape(said.strip())}.*; its logs are in "
    with pytest.raises(QrayError, match=expected):
        start_local_ray(2, {})
    assert len(begun) == starts
