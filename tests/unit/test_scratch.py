"""Temporary folders where TMPDIR's path will not do."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qray.errors import QrayError
from qray.scratch import has_blank, scratch_folder, temporary_root, without_blanks, writable


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


MAKE = (
    "import sys, time\nfrom qray.scratch import scratch_folder\nwith scratch_folder('build') as folder:\n"
    "    (folder / 'weights').write_bytes(b'0' * 1000)\n    print(folder, flush=True)\n    time.sleep(60)"
)


@pytest.fixture
def killed_and_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """Temporary folders of a process that was killed, and of one that goes on."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    begun = [subprocess.Popen([sys.executable, "-c", MAKE], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = [Path(process.stdout.readline().strip()) for process in begun if process.stdout is not None]
    begun[0].kill()
    begun[0].wait()
    yield folders[0], folders[1]
    begun[1].kill()
    begun[1].wait()


def test_what_a_killed_process_left_goes_with_the_next_start_and_nothing_else(
    tmp_path: Path, killed_and_alive: tuple[Path, Path]
) -> None:
    killed, alive = killed_and_alive
    (tmp_path / "qray-notes").mkdir()
    assert (killed / "weights").is_file()
    with scratch_folder("memory") as own:
        assert own.is_dir()
        assert (alive / "weights").is_file()
        assert sorted(tmp_path.iterdir()) == sorted([alive.parent, own.parent, tmp_path / "qray-notes"])
    assert not own.parent.exists()


@pytest.mark.slow
def test_aotinductor_compiles_where_tmpdir_has_a_blank(blank: Path) -> None:
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom qray.engines import inductor\n"
        "class Double(torch.nn.Module):\n    def forward(self, x): return x * 2\n"
        "program = torch.export.export(Double(), (torch.zeros(4, 8),))\n"
        "inductor._compile(program, Path(sys.argv[1]), 'native', packed=False)"
    )
    out = blank / "model.pt2"
    # In a process of its own: Inductor fixes its folders when it is imported.
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert out.is_file()
