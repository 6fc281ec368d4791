"""A file that crashes or stops the decoder costs itself alone; so does a process that is killed while it judges."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.videos import numbered_frames, write_video

from qray.apart import start_apart
from qray.data import probing
from qray.data.manifest import read_manifest
from qray.data.probe import probe
from qray.data.probing import end_probing, probe_files
from qray.study import Data


def fragile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes whose decoder is not to be relied on."""
    monkeypatch.setattr(probing, "start_apart", partial(_instead, "support.fragile_decoder"))


def _instead(module: str, _: str, function: str, **pipes: Any) -> Any:
    return start_apart(module, function, **pipes)


@pytest.fixture(autouse=True)
def _none_kept() -> Iterator[None]:
    end_probing()
    yield
    end_probing()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "good.avi"
    write_video(path, numbered_frames(8), "mjpeg", "yuvj420p")
    return path.read_bytes()


def written(folder: Path, content: bytes, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(content)
    return [folder / name for name in names]


def ours() -> list[psutil.Process]:
    """Processes that judge files for this one."""
    return [p for p in psutil.Process().children() if "qray.data.probing" in " ".join(p.cmdline())]


def test_files_are_judged_there_as_they_are_here(good: bytes, tmp_path: Path) -> None:
    paths = written(tmp_path, good, "a.avi", "with a\nline break.avi") + written(tmp_path, b"text", "b.avi")
    assert dict(probe_files(paths, 2)) == {path: probe(path) for path in paths}


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_a_file_that_crashes_the_decoder_costs_itself_alone(
    at_a_time: int, good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragile(monkeypatch)
    paths = written(tmp_path, good, "1.avi", "crash-2.avi", "3.avi", "crash-4.avi", "5.avi", "6.avi")
    found = dict(probe_files(paths, at_a_time))
    assert found.keys() == set(paths)
    wrong = {path.name: facts.error for path, facts in found.items() if facts.error}
    assert wrong == dict.fromkeys(("crash-2.avi", "crash-4.avi"), "decoding it ends the process (SIGSEGV)")


def test_an_error_that_nobody_has_heard_of_is_a_reason_and_no_silence(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragile(monkeypatch)
    monkeypatch.setattr(probing, "SILENCE_S", 60.0)
    odd, fine = written(tmp_path, good, "odd.avi", "1.avi")
    found = dict(probe_files([odd, fine], 2))
    assert (found[odd].error, found[fine].error) == ("cannot be judged (KeyError: 'odd.avi')", None)


def test_a_file_with_which_the_decoder_never_ends_costs_itself_alone(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragile(monkeypatch)
    monkeypatch.setattr(probing, "SILENCE_S", 5.0)
    paths = written(tmp_path, good, "1.avi", "hang-2.avi", "3.avi", "4.avi")
    found = dict(probe_files(paths, 2))
    wrong = {path.name: facts.error for path, facts in found.items() if facts.error}
    assert wrong == {"hang-2.avi": "decoding it does not end (5 s)"}
    assert found.keys() == set(paths)


def test_a_process_that_is_killed_is_replaced_and_no_good_file_is_lost(good: bytes, tmp_path: Path) -> None:
    paths = written(tmp_path, good, *(f"{n}.avi" for n in range(200)))
    killed: list[int] = []

    def kill() -> None:
        killed.extend(process.pid for process in ours())
        for number in killed:
            os.kill(number, signal.SIGKILL)

    found = {}
    for path, facts in probe_files(paths, 2):
        found[path] = facts
        if len(found) == 50:
            thread = threading.Thread(target=kill)
            thread.start()
            thread.join()
    assert killed
    assert found == {path: probe(path) for path in paths}


def test_the_process_is_kept_for_the_next_call_and_ended_when_told(good: bytes, tmp_path: Path) -> None:
    paths = written(tmp_path, good, "1.avi", "2.avi")
    for path in paths:
        assert dict(probe_files([path], 1))[path].error is None
        assert len(ours()) == 1
    end_probing()
    assert not ours()


def test_what_is_left_in_the_middle_leaves_no_process(good: bytes, tmp_path: Path) -> None:
    asking = probe_files(written(tmp_path, good, "1.avi", "2.avi", "3.avi"), 1)
    next(asking)
    asking.close()
    assert not ours()


def test_the_data_set_of_such_a_file_is_read_without_it(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragile(monkeypatch)
    written(tmp_path / "Videos", good, "crash.avi", "good.avi")
    (tmp_path / "FileList.csv").write_text("FileName,EF,Split\ncrash,50,TRAIN\ngood,40,TRAIN\n")
    manifest = read_manifest(tmp_path, Data())
    assert manifest.clips["clip"].tolist() == ["good"]
    assert manifest.rejected.values.tolist() == [[2, "crash", "decoding it ends the process (SIGSEGV)"]]
