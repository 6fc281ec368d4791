"""A data set in an object store is read as from a folder: the same clips, the same digest, the same rejections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from support.runs import main_here
from support.s3 import Server
from support.videos import numbered_frames, write_video

from qray.data.manifest import Manifest, clip_paths, read_manifest
from qray.data.probing import end_probing
from qray.data.video_folder import StoredVideos
from qray.errors import QrayError
from qray.storage.cache import local_copy
from qray.study import Data

LIST = """FileName,EF,Split
a,50,TRAIN
sub/b.avi,51,TRAIN
C.AVI,52,VAL
a.avi,53,TEST
none,54,TEST
../out.avi,55,TEST
broken,56,TEST
é,57,TEST
{uri},58,TEST
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with what is usually wrong with one."""
    root = tmp_path_factory.mktemp("stored") / "set"
    for number, name in enumerate(("a.avi", "sub/b.avi", "c.avi", "é.avi", "d.avi")):
        (root / "Videos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / "Videos" / name, numbered_frames(4 + number))
    (root / "Videos" / "broken.avi").write_bytes(b"no video")
    return root


@pytest.fixture
def uri(server: Server, folder: Path) -> Iterator[str]:
    """It, on the server; the list names one file there by its URI."""
    found = server.upload(folder, "set")
    whole = server.uri("set/Videos/d.avi").partition("?")[0]
    (server.place("set") / "FileList.csv").write_bytes(LIST.format(uri=whole).encode())
    (folder / "FileList.csv").write_text(LIST.format(uri=folder / "Videos" / "d.avi"), encoding="utf-8")
    yield found
    # Its environment is that of the test.
    end_probing()


def read(root: object) -> Manifest:
    return read_manifest(root, Data(max_rejected=1.0))  # type: ignore[arg-type]


def facts(manifest: Manifest, of: str) -> pd.DataFrame:
    """What is known of clips, but where they lie."""
    return getattr(manifest, of).drop(columns="path", errors="ignore")


def test_the_manifest_is_that_of_the_folder(uri: str, server: Server, folder: Path) -> None:
    stored, local = read(server.place("set")), read(folder)
    assert stored.digest == local.digest
    pd.testing.assert_frame_equal(facts(stored, "clips"), facts(local, "clips"))
    assert sorted(stored.clips["clip"])[:2] == ["C", "a"]
    assert len(stored.clips) == 5
    # The name that is whole differs, and nothing else.
    assert stored.rejected["reason"].tolist() == local.rejected["reason"].tolist()


def test_a_file_is_judged_once_and_then_by_its_size_and_time(uri: str, server: Server) -> None:
    first = read(server.place("set"))
    again = read_manifest(server.place("set"), Data(), known=first.probes)
    assert again.clips.equals(first.clips)
    keys = {key.rpartition("|")[0].rpartition("|")[0] for key in first.probes}
    assert "a.avi|" + str((server.place("set") / "Videos/a.avi").stat().size) in keys  # type: ignore[union-attr]


def test_a_clip_has_its_bytes_wherever_it_lies(uri: str, server: Server, folder: Path) -> None:
    paths = clip_paths(server.place("set"), Data())
    with local_copy(paths["sub/b"]) as path:
        assert path.suffix == ".avi"
        assert path.read_bytes() == (folder / "Videos/sub/b.avi").read_bytes()


def test_data_check_takes_a_uri(uri: str) -> None:
    done = main_here("data", "check", uri)
    assert "VAL: 1 clip" in done.stdout
    assert "'none': file not found in Videos/" in done.stdout


def test_a_set_without_its_list_is_a_sentence(server: Server) -> None:
    with pytest.raises(QrayError, match=r"empty/FileList\.csv.*: no such file; a data set needs this list of clips"):
        read(server.place("empty"))


def test_names_out_of_the_folder_lead_nowhere(uri: str, server: Server) -> None:
    videos = StoredVideos(server.place("set/Videos"))
    for name in ("../FileList.csv", "/etc/passwd", "s3://other/set/Videos/a.avi", "file:///etc/passwd"):
        assert videos.find(name) == (None, "the name leaves Videos/")
    assert videos.find("sub")[0] is None
