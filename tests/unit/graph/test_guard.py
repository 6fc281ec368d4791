"""What is left of a session whose driver is killed: nothing, and a sentence."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from support.faults import left_of
from support.runs import END_TIMEOUT_S

from qray.apart import start_apart
from qray.graph.guard import LAST_WORDS, MARK, guarded


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """A driver, and what it has started."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ready = tmp_path / "ready"
    process = start_apart("support.driver", "drive", str(ready), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    while not ready.is_file() or not ready.read_text():
        assert process.poll() is None, process.communicate()[1]
    return process, psutil.Process(int(ready.read_text()))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_driver_that_is_killed_leaves_no_process_and_no_folder_and_a_sentence(
    how: int, driver: tuple[subprocess.Popen[bytes], psutil.Process], tmp_path: Path
) -> None:
    process, started = driver
    assert list(tmp_path.glob("qray-driver-*"))
    os.kill(process.pid, how)
    words = process.communicate(timeout=END_TIMEOUT_S)[1].decode()
    assert words.splitlines()[-1] == LAST_WORDS
    assert not left_of([started])
    assert not list(tmp_path.glob("qray-*"))


def test_a_driver_that_ends_in_order_is_not_mourned(driver: tuple[subprocess.Popen[bytes], psutil.Process]) -> None:
    process, started = driver
    assert process.communicate(timeout=END_TIMEOUT_S)[1] == b""
    assert not left_of([started])


def test_the_mark_is_of_the_session_alone() -> None:
    with guarded():
        assert os.environ[MARK]
    assert MARK not in os.environ
