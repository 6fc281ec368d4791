"""Good rows become clips; bad rows are left out one by one, each with its line and its reason."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from qray.data.manifest import Manifest, check_manifest, clip_paths, read_manifest, write_rejected
from qray.data.video_folder import VideoFolder
from qray.errors import QrayError
from qray.study import Data

if TYPE_CHECKING:
    from tests.unit.data.conftest import DataSet


def names(manifest: Manifest) -> list[str]:
    return manifest.clips["clip"].tolist()


def reasons(manifest: Manifest) -> dict[int, str]:
    return dict(zip(manifest.rejected["row"], manifest.rejected["reason"], strict=True))


def test_a_row_becomes_a_clip_with_its_facts(data_set: DataSet) -> None:
    data_set.video("a.avi")
    clip = data_set.read(("a", "55.5", "TRAIN")).clips.iloc[0]
    assert (clip["clip"], clip.target, clip["split"], clip.fps) == ("a", 55.5, "TRAIN", 50)
    assert (clip.n_frames, clip.width, clip.height) == (2, 16, 16)
    assert clip.path == str((data_set.root / "Videos" / "a.avi").resolve())


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("clip", "clip.avi"),
        ("clip.avi", "clip.avi"),
        ("clip", "clip.webm"),
        ("a.b.c", "a.b.c.avi"),
        ("v1.0.avi", "v1.0.avi"),
        ("two words", "two words.mp4"),
        ("심장-é", "심장-é.avi"),
        ("caf\u00e9", "cafe\u0301.avi"),
        ("site/room/clip", "site/room/clip.avi"),
        ("site\\clip.avi", "site/clip.avi"),
        ("./clip", "clip.avi"),
        ("CLIP.AVI", "clip.avi"),
        ("clip", "Clip.AVI"),
        ("12:30.avi", "12:30.avi"),
        ("no-ending", "no-ending"),
        ("gone/../clip.avi", "clip.avi"),
        ("SITE/Caf\u00e9/CLIP", "site/cafe\u0301/Clip.AVI"),
        (" clip.avi ", "clip.avi"),
        ("clip .avi", "clip .avi"),
    ],
)
def test_a_file_is_found_under_the_name_that_people_give_it(data_set: DataSet, name: str, file: str) -> None:
    data_set.video(file)
    assert data_set.read((name, 50, "TRAIN")).clips["path"].tolist() == [str(data_set.root / "Videos" / file)]


def test_files_whose_names_differ_in_case_are_two_clips(data_set: DataSet) -> None:
    data_set.video("a.avi", "A.avi")
    clips = data_set.read(("A", 50, "TRAIN"), ("a", 60, "TRAIN")).clips
    assert [Path(path).name for path in clips["path"]] == ["A.avi", "a.avi"]


def test_a_name_that_could_be_either_of_two_files_is_rejected(data_set: DataSet) -> None:
    data_set.video("clip.avi", "Clip.avi", "x.avi")
    manifest = data_set.read(("CLIP", 50, "TRAIN"), ("x", 50, "TRAIN"))
    assert "could be any of Clip.avi, clip.avi" in reasons(manifest)[2]


@pytest.mark.parametrize("order", [1, -1])
def test_files_that_share_a_name_but_for_the_ending_are_two_clips(data_set: DataSet, order: int) -> None:
    data_set.video("P0.avi", "P0.mp4", "P1.avi", "site/P0.avi")
    rows = [("P0.avi", 1, "TRAIN"), ("P0.mp4", 2, "TEST"), ("P1.avi", 3, "VAL"), ("site/P0", 4, "VAL")]
    manifest = data_set.read(*rows[::order])
    assert dict(zip(manifest.clips["clip"], manifest.clips["target"], strict=True)) == {
        "P0.avi": 1, "P0.mp4": 2, "P1": 3, "site/P0": 4,
    }  # fmt: skip
    assert [Path(path).name for path in manifest.clips["path"]] == ["P0.avi", "P0.mp4", "P1.avi", "P0.avi"]


def test_a_file_of_a_shared_name_that_is_listed_twice_is_a_duplicate(data_set: DataSet) -> None:
    data_set.video("P0.avi", "P0.mp4")
    manifest = data_set.read(("P0", 1, "TRAIN"), ("P0.mp4", 2, "VAL"), ("P0.avi", 3, "TEST"))
    assert names(manifest) == ["P0.avi", "P0.mp4"]
    assert reasons(manifest) == {4: "the name was seen before, in line 2"}


def test_only_one_of_two_files_that_share_a_name_keeps_its_short_name(data_set: DataSet) -> None:
    data_set.video("P0.avi", "P0.mp4")
    manifest = data_set.read(("P0.mp4", 2, "TRAIN"))
    assert [Path(path).name for path in manifest.clips["path"]] == ["P0.mp4"]
    assert names(manifest) == ["P0"]


def test_clip_names_differ_even_where_an_ending_is_part_of_another_name(data_set: DataSet) -> None:
    data_set.video("P0.avi", "P0.mp4", "P0.avi.mkv")
    manifest = data_set.read(("P0.avi", 1, "TRAIN"), ("P0.mp4", 2, "TRAIN"), ("P0.avi.mkv", 3, "TRAIN"))
    assert names(manifest) == ["P0.avi", "P0.avi.mkv", "P0.mp4"]


def test_accents_that_are_composed_in_two_ways_in_two_files_are_two_clips(data_set: DataSet) -> None:
    data_set.video("caf\u00e9.avi", "cafe\u0301.avi")
    manifest = data_set.read(("caf\u00e9", 1, "TRAIN"), ("cafe\u0301.avi", 2, "TRAIN"))
    assert sorted(Path(path).name for path in manifest.clips["path"]) == ["cafe\u0301.avi", "caf\u00e9.avi"]


def test_the_files_of_clips_are_known_without_reading_them(data_set: DataSet) -> None:
    data_set.video("P0.avi", "P0.mp4", "Q.avi")
    manifest = data_set.read(("P0.avi", 1, "TRAIN"), ("P0.mp4", 2, "TRAIN"), ("q", 3, "TRAIN"))
    paths = clip_paths(data_set.root, Data())
    assert paths == dict(zip(manifest.clips["clip"], manifest.clips["path"], strict=True))


def test_copies_of_a_file_are_named_and_a_leak_is_called_one(data_set: DataSet) -> None:
    data_set.video("a.avi", "b.avi", "c.avi", "d.avi")
    videos = data_set.root / "Videos"
    shutil.copyfile(videos / "a.avi", videos / "a2.avi")
    shutil.copyfile(videos / "b.avi", videos / "b2.avi")
    manifest = data_set.read(("a", 1, "TRAIN"), ("a2", 1, "TEST"), ("b", 1, "VAL"), ("b2", 1, "VAL"), ("c", 1, "TRAIN"))
    assert len(manifest.clips) == 5
    leak, copies = sorted(manifest.warnings, key=lambda text: "several splits" not in text)
    assert leak.startswith("a (TRAIN), a2 (TEST) have the same content; they are in several splits")
    assert copies == "b (VAL), b2 (VAL) have the same content"


@pytest.mark.parametrize("again", ["a", "a.avi", "A", "./a.avi", "A.AVI"])
def test_every_later_row_of_a_name_is_rejected(data_set: DataSet, again: str) -> None:
    data_set.video("a.avi")
    manifest = data_set.read(("a", 50, "TRAIN"), (again, 60, "TEST"), (again, 50, "TRAIN"))
    assert manifest.clips["target"].tolist() == [50]
    assert reasons(manifest) == dict.fromkeys((3, 4), "the name was seen before, in line 2")


def test_a_name_whose_first_row_was_bad_stays_rejected(data_set: DataSet) -> None:
    data_set.video("a.avi", "b.avi")
    manifest = data_set.read(("a", "", "TRAIN"), ("a", 60, "TRAIN"), ("b", 1, "TRAIN"))
    assert names(manifest) == ["b"]
    assert reasons(manifest) == {2: "EF is '', not a finite number", 3: "the name was seen before, in line 2"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", "file not found in Videos/"),
        ("x" * 5000, "file not found in Videos/"),
        ("folder", "a folder, not a file, in Videos/"),
        ("../x", "the name leaves Videos/"),
        ("site/../../x", "the name leaves Videos/"),
        ("..\\x", "the name leaves Videos/"),
        ("/etc/passwd", "the name leaves Videos/"),
        ("C:\\clips\\x.avi", "the name leaves Videos/"),
        ("file:///etc/passwd", "file not found in Videos/"),
        ("link-out", "a link that leaves Videos/; data.follow_links: true allows it"),
        ("link-dead", "a link to a file that is not there"),
        ("link-loop", "a link to a file that is not there"),
        ("", "no file name"),
        (".", "no file name"),
        ("..", "the name leaves Videos/"),
        ("nul\0byte", "the name holds a control character, '\\x00'"),
        ("red\x1b[31m", "the name holds a control character, '\\x1b'"),
        ("linked-folder/x", "a link that leaves Videos/; data.follow_links: true allows it"),
        ("linked-folder", "a link that leaves Videos/; data.follow_links: true allows it"),
        ("folder/../missing", "file not found in Videos/"),
    ],
)
def test_a_row_without_a_file_of_the_set_is_rejected(data_set: DataSet, name: str, says: str) -> None:
    videos = data_set.root / "Videos"
    data_set.video("good.avi")
    shutil.copyfile(videos / "good.avi", data_set.root / "x.avi")
    (videos / "folder").mkdir()
    (videos / "link-out.avi").symlink_to(data_set.root / "x.avi")
    (videos / "link-dead.avi").symlink_to(videos / "gone.avi")
    (videos / "link-loop.avi").symlink_to(videos / "link-loop.avi")
    (videos / "linked-folder").symlink_to(data_set.root)
    manifest = data_set.read(("good", 50, "TRAIN"), (name, 60, "TRAIN"), ("x" if not name else "also-missing", 1, ""))
    assert names(manifest) == ["good"]
    assert reasons(manifest)[3] == says


def test_links_within_the_video_folder_are_followed(data_set: DataSet) -> None:
    data_set.video("store/good.avi")
    (data_set.root / "Videos" / "link.avi").symlink_to(data_set.root / "Videos" / "store" / "good.avi")
    assert names(data_set.read(("link", 50, "TRAIN"))) == ["link"]


@pytest.fixture
def annexed(data_set: DataSet) -> DataSet:
    """As git-annex and download caches leave a set: a linked file, a linked folder, a linked folder in that."""
    data_set.video("here.avi", "sub/there.avi")
    store, videos = data_set.root / "store", data_set.root / "Videos"
    (store / "more").mkdir(parents=True)
    for at, name in enumerate(("blob", "a.avi", "more/b.avi")):
        shutil.copyfile(data_set.samples[at + 3], store / name)
    (videos / "linked.avi").symlink_to("../store/blob")
    (videos / "folder").symlink_to(store)
    (store / "circle").symlink_to(videos)
    return data_set


LINKED = ("linked", "folder/a.avi", "folder/MORE/B", "folder/circle/here", "folder/circle/folder/circle/sub/there")


def test_a_link_whose_file_went_after_the_look_at_it_is_a_rejected_row(
    data_set: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_set.video("good.avi", "target.avi")
    target = data_set.root / "Videos" / "target.avi"
    (data_set.root / "Videos" / "link.avi").symlink_to(target)
    stamp = VideoFolder.stamp

    def stamped(videos: VideoFolder, name: str) -> str:
        target.unlink(missing_ok=True)
        return stamp(videos, name)

    monkeypatch.setattr(VideoFolder, "stamp", stamped)
    manifest = data_set.read(("good", 50, "TRAIN"), ("link", 60, "TRAIN"))
    assert reasons(manifest) == {3: "file not found"}


def test_links_out_of_the_folder_are_refused_with_the_key_that_allows_them(annexed: DataSet) -> None:
    manifest = annexed.read(("here", 1, "TRAIN"), *((name, 1, "TRAIN") for name in LINKED[:3]))
    assert set(reasons(manifest).values()) == {"a link that leaves Videos/; data.follow_links: true allows it"}


def test_follow_links_allows_links_to_files_and_folders_and_circles_do_no_harm(annexed: DataSet) -> None:
    data = Data(follow_links=True)
    manifest = annexed.read(*((name, 1, "TRAIN") for name in LINKED), data=data)
    assert (set(names(manifest)), len(manifest.rejected)) == ({*LINKED, "folder/a"} - {"folder/a.avi"}, 0)
    assert read_manifest(annexed.root, data, known=manifest.probes).digest == manifest.digest


def test_linked_files_have_the_digest_of_the_same_files_in_place(annexed: DataSet, tmp_path: Path) -> None:
    data, rows = Data(follow_links=True), [("linked", 1, "TRAIN"), ("folder/a", 2, "VAL")]
    linked = annexed.read(*rows, data=data)
    shutil.rmtree(annexed.root / "store" / "more")
    (annexed.root / "store" / "circle").unlink()
    shutil.copytree(annexed.root, tmp_path / "copy")
    assert read_manifest(tmp_path / "copy", Data()).digest == linked.digest


def test_a_link_is_followed_to_nothing_but_a_regular_file(data_set: DataSet) -> None:
    data_set.video("good.avi")
    videos = data_set.root / "Videos"
    os.mkfifo(data_set.root / "pipe")
    (videos / "pipe.avi").symlink_to(data_set.root / "pipe")
    (videos / "null.avi").symlink_to("/dev/null")
    (videos / "dir.avi").symlink_to(data_set.root)
    rows = [(name, 1, "TRAIN") for name in ("good", "pipe", "null", "dir.avi")]
    assert reasons(data_set.read(*rows, data=Data(follow_links=True))) == {
        3: "not a file",
        4: "not a file",
        5: "a folder, not a file, in Videos/",
    }


@pytest.mark.parametrize("follow", [False, True])
def test_an_absolute_path_into_the_folder_is_the_file_there(data_set: DataSet, tmp_path: Path, follow: bool) -> None:
    data_set.video("a.avi", "sub/b.avi")
    videos = data_set.root / "Videos"
    (tmp_path / "alias").symlink_to(data_set.root)
    rows = [(videos / "a.avi", 1, "TRAIN"), (tmp_path / "alias" / "Videos" / "sub" / "b", 2, "TRAIN")]
    manifest = data_set.read(*rows, data=Data(follow_links=follow))
    assert names(manifest) == ["a", "sub/b"]
    assert names(read_manifest(tmp_path / "alias", Data(follow_links=follow))) == ["a", "sub/b"]


def test_an_absolute_path_names_the_clip_as_a_relative_one_does(data_set: DataSet) -> None:
    data_set.video("a.avi")
    plain = data_set.read(("a.avi", 1, "TRAIN"))
    assert data_set.read((data_set.root / "Videos" / "a.avi", 1, "TRAIN")).digest == plain.digest


def test_the_video_folder_itself_may_be_a_link(data_set: DataSet, tmp_path: Path) -> None:
    data_set.video("a.avi")
    (data_set.root / "Videos").rename(tmp_path / "elsewhere")
    (data_set.root / "Videos").symlink_to(tmp_path / "elsewhere")
    assert names(data_set.read(("a", 50, "TRAIN"))) == ["a"]


@pytest.mark.parametrize("target", ["", "nan", "NaN", "inf", "-inf", "1e400", "1e39", "high", "55;5", "1_0", "0x10"])
def test_a_target_that_is_no_finite_number_is_rejected(data_set: DataSet, target: str) -> None:
    data_set.video("a.avi", "b.avi")
    manifest = data_set.read(("a", target, "TRAIN"), ("b", 1, "TRAIN"))
    assert reasons(manifest) == {2: f"EF is {target!r}, not a finite number"}


def test_a_decimal_comma_is_named_with_its_line(data_set: DataSet) -> None:
    data_set.video("a.avi", "b.avi")
    (data_set.root / "FileList.csv").write_text("sep=;\nFileName;EF;Split\na;55,5;TRAIN\nb;60;VAL\n", encoding="utf-8")
    manifest = read_manifest(data_set.root, Data())
    assert reasons(manifest) == {3: "EF is '55,5', not a finite number; write 55.5, with a point"}


@pytest.mark.parametrize("target", ["55.5", "-3", "1e-3", " 7 ", "0"])
def test_any_finite_number_is_a_target(data_set: DataSet, target: str) -> None:
    data_set.video("a.avi")
    assert data_set.read(("a", target, "TRAIN")).clips["target"].tolist() == [float(target)]


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "empty file"), (b"text\n" * 300, "cannot be decoded"), (b"cut", "truncated")]
)
def test_a_file_that_is_no_clip_is_rejected_and_the_others_are_kept(
    data_set: DataSet, content: bytes, says: str
) -> None:
    data_set.video("a.avi", "bad.avi", "c.avi")
    path = data_set.root / "Videos" / "bad.avi"
    path.write_bytes(path.read_bytes()[:2500] if content == b"cut" else content)
    manifest = data_set.read(("a", 1, "TRAIN"), ("bad", 2, "TRAIN"), ("c", 3, "TRAIN"))
    assert names(manifest) == ["a", "c"]
    assert says in reasons(manifest)[3]


def test_another_layout_needs_only_its_columns_named(tmp_path: Path, samples: list[Path]) -> None:
    (tmp_path / "lists").mkdir()
    shutil.copyfile(samples[0], tmp_path / "x.avi")
    (tmp_path / "lists" / "ages.csv").write_text("path,age,site\nx.avi,41,2\n", encoding="utf-8")
    data = Data(file_list="lists/ages.csv", videos=".", file_column="path", target_column="age", split_column=None)
    assert read_manifest(tmp_path, data).clips["target"].tolist() == [41]


@pytest.mark.parametrize("absolute", [True, False])
def test_videos_may_lie_outside_the_folder_of_the_list(data_set: DataSet, tmp_path: Path, absolute: bool) -> None:
    data_set.video("a.avi")
    (data_set.root / "Videos").rename(tmp_path / "far")
    videos = str(tmp_path / "far") if absolute else "../far"
    assert names(data_set.read(("a", 50, "TRAIN"), data=Data(videos=videos))) == ["a"]


def test_a_relative_folder_gives_the_same_clips(data_set: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set.video("a.avi")
    here = data_set.read(("a", 50, "TRAIN"))
    monkeypatch.chdir(data_set.root)
    assert read_manifest(Path(), Data()).clips.equals(here.clips)


def test_a_missing_video_folder_says_where_it_was_expected(data_set: DataSet) -> None:
    os.rmdir(data_set.root / "Videos")
    with pytest.raises(QrayError, match=r"Videos: no such folder.*data\.videos"):
        data_set.read(("a", 50, "TRAIN"))


def test_a_set_without_a_good_row_says_why(data_set: DataSet) -> None:
    with pytest.raises(QrayError, match="none of its 2 rows is usable; line 2 'a': file not found in Videos/"):
        data_set.read(("a", 50, "TRAIN"), ("b", 50, "TRAIN"))


def test_files_that_were_probed_before_are_not_read_again(data_set: DataSet) -> None:
    data_set.video("a.avi")
    first = data_set.read(("a", 50, "TRAIN"))
    path = data_set.root / "Videos" / "a.avi"
    stat, size = path.stat(), path.stat().st_size
    path.write_bytes(b"\0" * size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert read_manifest(data_set.root, Data(), known=first.probes).clips.equals(first.clips)


def test_what_another_version_told_of_a_file_is_not_trusted(data_set: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set.video("a.avi")
    known = data_set.read(("a", 50, "TRAIN")).probes
    monkeypatch.setattr("qray.data.manifest.PROBE_VERSION", -1)
    stale = {key: replace(facts, n_frames=99) for key, facts in known.items()}
    assert read_manifest(data_set.root, Data(), known=stale).clips["n_frames"].tolist() == [2]


def test_files_that_changed_are_probed_again(data_set: DataSet) -> None:
    data_set.video("a.avi", "b.avi")
    first = data_set.read(("a", 50, "TRAIN"), ("b", 50, "TRAIN"))
    shutil.copyfile(data_set.samples[-1], data_set.root / "Videos" / "a.avi")
    again = read_manifest(data_set.root, Data(), known=first.probes)
    assert again.clips["n_frames"].tolist() == [7, first.clips["n_frames"][1]]


def _with_bad_rows(data_set: DataSet, good: int, bad: int) -> Manifest:
    data_set.video(*(f"c{i}.avi" for i in range(good)))
    splits = ["VAL", "TEST"] + ["TRAIN"] * good
    rows = [(f"c{i}", 50, splits[i]) for i in range(good)]
    return data_set.read(*rows, *((f"gone{i}", 50, "TRAIN") for i in range(bad)))


def test_as_many_bad_rows_as_the_study_allows_are_left_out(data_set: DataSet) -> None:
    manifest = _with_bad_rows(data_set, good=19, bad=1)
    check_manifest(manifest, Data())
    assert len(manifest.clips) == 19


def test_more_bad_rows_than_the_study_allows_are_refused_with_names_and_advice(data_set: DataSet) -> None:
    manifest = _with_bad_rows(data_set, good=18, bad=2)
    with pytest.raises(QrayError) as caught:
        check_manifest(manifest, Data())
    message = str(caught.value)
    assert "2 of 20 rows of FileList.csv are bad, more than data.max_rejected = 0.05" in message
    assert "line 20 'gone0': file not found in Videos/; line 21 'gone1'" in message
    assert "--set data.max_rejected=" in message


def test_the_limit_of_bad_rows_can_be_raised(data_set: DataSet) -> None:
    check_manifest(_with_bad_rows(data_set, good=5, bad=5), Data(max_rejected=0.5))


def test_a_long_list_of_bad_rows_is_cut_in_the_message(data_set: DataSet) -> None:
    with pytest.raises(QrayError, match="line 14 'gone4': file not found in Videos/; and 3 more"):
        check_manifest(_with_bad_rows(data_set, good=8, bad=8), Data())


@pytest.mark.parametrize("missing", ["TRAIN", "VAL", "TEST"])
def test_a_split_without_clips_is_refused(data_set: DataSet, missing: str) -> None:
    data_set.video("a.avi", "b.avi", "c.avi", "d.avi")
    splits = [split for split in ("TRAIN", "VAL", "TEST") if split != missing] * 2
    manifest = data_set.read(*((name, 50, split) for name, split in zip("abcd", splits, strict=True)))
    with pytest.raises(QrayError, match=f"0 usable clips in split {missing}"):
        check_manifest(manifest, Data())


def test_rejected_rows_are_kept_as_parquet(data_set: DataSet, tmp_path: Path) -> None:
    manifest = _with_bad_rows(data_set, good=1, bad=1)
    write_rejected(manifest, tmp_path / "rejected.parquet")
    rows = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert rows == [{"row": 3, "clip": "gone0", "reason": "file not found in Videos/"}]


def test_no_rejected_rows_are_a_parquet_file_too(data_set: DataSet, tmp_path: Path) -> None:
    write_rejected(_with_bad_rows(data_set, good=1, bad=0), tmp_path / "rejected.parquet")
    assert pq.read_table(tmp_path / "rejected.parquet").num_rows == 0
