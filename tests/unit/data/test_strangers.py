"""Lists and videos that strangers made: a row is a clip or rejected with a reason, or the list is refused in a
sentence; in bounded time and memory, and without opening what is no file."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.runs import main_here
from support.videos import numbered_frames, write_video

from qray.data import decode, manifest, probe
from qray.data.decode import ClipError, decode_frames
from qray.data.manifest import Manifest, read_manifest, write_rejected
from qray.data.probe import Probe
from qray.data.video_folder import VideoFolder
from qray.errors import QrayError
from qray.escape import visible
from qray.study import Data

if TYPE_CHECKING:
    from tests.unit.data.conftest import DataSet

LIST = 'FileName,EF,Split\na,55.1,TRAIN\nb.avi,44,VAL\nsub/c,33,TEST\n"e\u0301",20,\n'.encode()
#: What people, programs and strangers write where something else belongs.
JUNK = (
    b'"', b"'", b",", b";", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\xc2\x85",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[31m", b"\xe2\x80\xae", b"\xe2\x80\xa8", b"../", b"..\\", b"/",
    b"/etc/passwd", b"C:\\x", b"file:a", b"~", b".", b"A.AVI", b"nan", b"-inf", b"1e308", b"1e999", b"-5", b"1_0",
    b"\xd9\xa1", b"0x10", b"9" * 5000, b"x,' " * 3000, b"=cmd|'/c calc'!A1", b"<script>", b"`|*", b"sep=;\n",
    b'sep="\n', b"sep=\n", b"sep=\r\n", b"sep=\0\n", b"sep= \n", b"FileName", b"EF,EF", b"TRAIN", b"z" * 200_000,
)  # fmt: skip


@st.composite
def lists(draw: st.DrawFn) -> bytes:
    """The list with a few bytes of it changed, cut out, or with others put in between."""
    content = bytearray(LIST)
    for _ in range(draw(st.integers(1, 5))):
        at, most = draw(st.integers(0, len(content))), draw(st.integers(0, 20))
        content[at : at + most] = draw(st.sampled_from(JUNK) | st.binary(max_size=8) | st.just(b""))
    return bytes(content)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A data set whose files are good clips by their names."""
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        for name in ("a.avi", "B.avi", "b.avi", "sub/c.avi", "e\u0301.avi"):
            path = Path(root, "Videos", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        patch.setattr(manifest, "probe_files", lambda paths, n: ((p, Probe(1, str(p), 3, 8, 8, 1.0)) for p in paths))
        yield Path(root)


def read(folder: Path, content: bytes, **data: object) -> Manifest | str:
    """The manifest of a list, or the sentence that refuses it."""
    (folder / "FileList.csv").write_bytes(content)
    try:
        return read_manifest(folder, Data.model_validate(data))
    except QrayError as error:
        return str(error)


@settings(max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(content=lists(), data=st.sampled_from([{}, {"split_column": None}, {"group_column": "Split"}]))
@example(content=LIST + b'd,1,"' + b"x" * 10_000_000, data={})
@example(content=b"FileName,EF,Split" + b",x" * 500_000 + b"\na,1,TRAIN" * 2000, data={})
@example(content=b"", data={})
@example(content=b"FileName,EF,Split\n", data={})
def test_whatever_stands_in_a_list_is_rejected_row_by_row_or_refused(
    folder: Path, content: bytes, data: dict[str, object]
) -> None:
    found = read(folder, content, **data)
    if isinstance(found, str):
        assert (str(folder) in found or "FileList.csv" in found, len(found) < 3000) == (True, True), found
        return
    for row in found.rejected.itertuples():
        assert row.reason == visible(row.reason)
        assert (1 < len(row.reason) < 400, len(row.clip) < 400, "\n" in row.reason) == (True, True, False)
    assert not found.clips["clip"].str.contains("[\\x00-\\x1f\\x7f-\\x9f]").any()
    write_rejected(found, folder / "rejected.parquet")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket", "large"])
def test_what_is_no_list_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "FileList.csv"
    (tmp_path / "Videos").mkdir()
    put(path, kind)
    done = main_here("data", "check", tmp_path)
    assert (done.code, f"{path}: not a file" in done.stderr or "3.0 GiB" in done.stderr) == (1, True), done.stderr


def put(path: Path, kind: str) -> None:
    """Something that is no list and no video, in the place of one."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        where = os.getcwd()
        os.chdir(path.parent)  # The path of a socket may have 107 bytes.
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(path.name)
        finally:
            os.chdir(where)
    else:
        path.touch()
        os.truncate(path, 3 * 2**30)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket"])
def test_what_is_no_video_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    """Neither where videos are judged, nor later: what was one then may be something else by now."""
    put(tmp_path / "x.avi", kind)
    assert probe.probe(tmp_path / "x.avi").error == "not a file"
    with pytest.raises(ClipError, match="not a file"):
        decode_frames(tmp_path / "x.avi", np.zeros((1, 1), int), 16)


def test_a_file_of_absurd_size_is_rejected_unread(tmp_path: Path) -> None:
    (tmp_path / "x.avi").touch()
    os.truncate(tmp_path / "x.avi", 2**40)
    assert probe.probe(tmp_path / "x.avi").error == "1024 GiB, of which qray reads at most 16"


@pytest.mark.parametrize("name", ["x.avi", "x.mp4"])
def test_a_small_file_of_very_many_pixels_is_rejected(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, pixels = ("mjpeg", "yuvj420p") if name == "x.avi" else ("libx264", "yuv420p")
    path = write_video(tmp_path / name, numbered_frames(20, 32, 32), codec, pixels)
    assert probe.probe(path).error is None
    monkeypatch.setattr(decode, "MOST_PIXELS", 19 * 32 * 32)
    assert "gigapixels" in str(probe.probe(path).error)


def test_links_to_where_they_stand_do_not_double_the_ways_with_each_step(
    data_set: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_set.video("good.avi")
    for name in ("loop", "LOOP"):
        (data_set.root / "Videos" / name).symlink_to(".")
    scan, left = os.scandir, iter(range(200))

    def counted(path: str) -> Iterator[os.DirEntry[str]]:
        assert next(left, None) is not None, "folders are listed again and again"
        return scan(path)

    monkeypatch.setattr(os, "scandir", counted)
    videos = VideoFolder(data_set.root / "Videos")
    assert videos.find("Loop/" * 30 + "none") == (None, "file not found in Videos/")
    assert videos.find("Loop/" * 30 + "GOOD")[0] is not None
