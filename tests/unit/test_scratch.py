"""Temporary folders where TMPDIR's path will not do."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from qray.errors import QrayError
from qray.scratch import has_blank, temporary_root, without_blanks, writable


@pytest.fixture
def blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TMPDIR with a blank in its path."""
    folder = tmp_path / "a b"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("SOME_CACHE", raising=False)
    return folder


def test_a_folder_that_cannot_be_written_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file system that takes no files, whoever asks.
    monkeypatch.setenv("TMPDIR", "/proc")
    assert not writable(Path("/proc"))
    assert temporary_root(lambda path: True) == Path("/tmp")


def test_without_blanks_moves_temporary_files_and_the_cache(blank: Path) -> None:
    with without_blanks("SOME_CACHE") as moved, tempfile.TemporaryDirectory() as folder:
        inside = (folder, os.environ["TMPDIR"], os.environ["SOME_CACHE"])
    assert moved
    assert not any(map(has_blank, inside))


def test_without_blanks_puts_everything_back(blank: Path) -> None:
    with without_blanks("SOME_CACHE"):
        pass
    assert (tempfile.gettempdir(), os.environ["TMPDIR"], "SOME_CACHE" in os.environ) == (str(blank), str(blank), False)


def test_a_cache_with_a_blank_is_moved_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_CACHE", str(tmp_path / "my cache"))
    with without_blanks("SOME_CACHE"):
        assert not has_blank(os.environ["SOME_CACHE"])


def test_where_there_is_no_blank_nothing_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    monkeypatch.delenv("SOME_CACHE", raising=False)
    with without_blanks("SOME_CACHE") as moved:
        assert (moved, "SOME_CACHE" in os.environ) == (False, False)


def test_without_any_folder_the_sentence_names_the_variable(blank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qray.scratch.writable", lambda folder: False)
    with pytest.raises(QrayError, match="set TMPDIR to a writable folder without"), without_blanks("SOME_CACHE"):
        pass


@pytest.mark.slow
def test_aotinductor_compiles_where_tmpdir_has_a_blank(blank: Path) -> None:
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom qray.engines import inductor\n"
        "class Double(torch.nn.Module):\n    def forward(self, x): return x * 2\n"
        "program = torch.export.export(Double(), (torch.zeros(4, 8),))\n"
        "inductor._compile(program, Path(sys.argv[1]))"
    )
    out = blank / "model.pt2"
    # In a process of its own: Inductor fixes its folders when it is imported.
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert out.is_file()
