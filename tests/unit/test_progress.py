"""Progress: a bar where somebody looks on, plain lines anywhere else, and nothing on stdout."""

from __future__ import annotations

import io
import sys

import pytest

from qray import progress as module
from qray.progress import progress


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def work(total: int = 4) -> None:
    with progress("Reading", total, "files") as advance:
        for _ in range(total):
            advance(1)


def test_nothing_is_written_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    work()
    assert capsys.readouterr().out == ""


def test_without_a_terminal_the_end_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    work()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Reading: 4/4 files in ")


def test_without_a_terminal_long_work_is_heard_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLAIN_LINE_EVERY_S", 0.0)
    work()
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["1/4", "2/4", "3/4", "4/4", "4/4"]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    work()
    assert "4/4" in stderr.getvalue()
    assert "\x1b" in stderr.getvalue()


def test_no_work_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    work(0)
    assert "0/0" in capsys.readouterr().err
