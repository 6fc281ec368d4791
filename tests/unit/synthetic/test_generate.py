"""The synthetic set has the layout and the truth of EchoNet-Dynamic, is the same every time, and can be resumed."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from qray.data.manifest import read_manifest
from qray.data.probe import probe
from qray.errors import QrayError
from qray.study import Data
from qray.synthetic.generate import SETTINGS_FILE, is_complete, synthesize

COUNTS = {"TRAIN": 10, "VAL": 2, "TEST": 3}
MAKE = """
from pathlib import Path
from qray.synthetic.generate import synthesize
if __name__ == "__main__":
    synthesize(Path({root!r}), {counts!r}, seed=3, workers=2)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synth") / "set"
    synthesize(root, COUNTS, seed=3, workers=1)
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def rows(root: Path, name: str = "FileList.csv") -> list[dict[str, str]]:
    with (root / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def digests(root: Path, lists: bool = True) -> dict[str, str]:
    """Digest of every file that is part of the layout."""
    files = [*(root / "Videos").iterdir(), *(root / name for name in ("FileList.csv", "VolumeTracings.csv") if lists)]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_file_list_has_the_columns_of_echonet_dynamic(made: Path) -> None:
    header = (made / "FileList.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split"


def test_the_splits_have_the_sizes_that_were_asked_for(made: Path) -> None:
    splits = [row["Split"] for row in rows(made)]
    assert {split: splits.count(split) for split in COUNTS} == COUNTS


def test_the_videos_are_mjpg_avi_of_112_pixels_at_50_frames_a_second(made: Path) -> None:
    for row in rows(made):
        with av.open(str(made / "Videos" / f"{row['FileName']}.avi")) as container:
            stream = container.streams.video[0]
            assert (container.format.name, stream.codec_context.codec_tag) == ("avi", "MJPG")
            assert (stream.width, stream.height, stream.average_rate) == (112, 112, 50)


def test_the_file_list_tells_the_truth_about_the_videos(made: Path) -> None:
    clips = read_manifest(made, Data()).clips.set_index("clip")
    for row in rows(made):
        clip = clips.loc[row["FileName"]]
        listed = (int(row["NumberOfFrames"]), int(row["FrameWidth"]), int(row["FrameHeight"]), float(row["FPS"]))
        assert (clip.n_frames, clip.width, clip.height, clip.fps) == listed


def test_the_videos_folder_holds_the_listed_videos_and_nothing_else(made: Path) -> None:
    assert sorted(os.listdir(made / "Videos")) == sorted(f"{row['FileName']}.avi" for row in rows(made))


def _simpson(chords: np.ndarray) -> float:
    """Volume of the traced cavity, method of disks: the first chord is the long axis, the others are diameters."""
    lengths = np.hypot(chords[:, 2] - chords[:, 0], chords[:, 3] - chords[:, 1])
    return float(np.pi / 4 * (lengths[1:] ** 2).sum() * lengths[0] / len(lengths[1:]))


def test_ef_is_simpsons_on_the_written_tracings(made: Path) -> None:
    traced: dict[str, dict[int, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows(made, "VolumeTracings.csv"):
        chord = [float(row[column]) for column in ("X1", "Y1", "X2", "Y2")]
        traced[row["FileName"]][int(row["Frame"])].append(chord)
    for row in rows(made):
        frames = traced[f"{row['FileName']}.avi"]
        assert len(frames) == 2
        assert max(frames) < int(row["NumberOfFrames"])
        volumes = [_simpson(np.array(chords)) for chords in frames.values()]
        assert abs(100 * (1 - min(volumes) / max(volumes)) - float(row["EF"])) < 0.05


def test_the_bytes_do_not_depend_on_the_number_of_workers(made: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "set", COUNTS, seed=3, workers=2)
    assert digests(tmp_path / "set") == digests(made)


def test_a_larger_set_keeps_the_clips_of_a_smaller_one(made: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "set", {"TRAIN": 4, "VAL": 1, "TEST": 1}, seed=3, workers=1)
    small = {row["FileName"]: row for row in rows(tmp_path / "set")}
    large = {row["FileName"]: row for row in rows(made)}
    assert small.items() <= large.items()
    assert all(digests(tmp_path / "set")[f"{name}.avi"] == digests(made)[f"{name}.avi"] for name in small)


def test_another_seed_gives_other_clips(made: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "set", {"TRAIN": 1, "VAL": 1, "TEST": 1}, seed=4, workers=1)
    assert not set(digests(tmp_path / "set").values()) & set(digests(made).values())


def test_deleted_videos_are_made_again_and_the_others_are_left_alone(made: Path, copy: Path) -> None:
    videos = sorted((copy / "Videos").iterdir())
    for video in videos[:3]:
        video.unlink()
    untouched = videos[3].stat().st_mtime_ns
    synthesize(copy, COUNTS, seed=3, workers=1)
    assert digests(copy) == digests(made)
    assert videos[3].stat().st_mtime_ns == untouched


def test_a_finished_set_is_complete(made: Path) -> None:
    assert is_complete(made, COUNTS, seed=3)


@pytest.mark.parametrize("lost", ["video", "list", "videos", "settings"])
def test_a_set_that_lost_something_is_not_complete(copy: Path, lost: str) -> None:
    if lost == "video":
        next((copy / "Videos").iterdir()).unlink()
    elif lost == "videos":
        shutil.rmtree(copy / "Videos")
    else:
        (copy / {"list": "FileList.csv", "settings": SETTINGS_FILE}[lost]).unlink()
    assert not is_complete(copy, COUNTS, seed=3)


@pytest.mark.parametrize(("counts", "seed"), [({**COUNTS, "TRAIN": 11}, 3), ({**COUNTS, "TRAIN": 9}, 3), (COUNTS, 4)])
def test_a_set_is_complete_for_its_own_size_and_seed_only(made: Path, counts: dict[str, int], seed: int) -> None:
    assert not is_complete(made, counts, seed)


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_unreadable_settings_are_not_a_complete_set(copy: Path, content: str) -> None:
    (copy / SETTINGS_FILE).write_bytes(content.encode("latin-1"))
    assert not is_complete(copy, COUNTS, seed=3)


def test_a_folder_that_is_not_there_is_not_a_complete_set(tmp_path: Path) -> None:
    assert not is_complete(tmp_path / "none", COUNTS, seed=3)


def test_a_set_of_another_seed_is_not_extended(copy: Path) -> None:
    with pytest.raises(QrayError, match=r"'seed': 3.* wants .*'seed': 4.*name another folder"):
        synthesize(copy, COUNTS, seed=4, workers=1)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(QrayError, match="not empty and not a synthetic set"):
        synthesize(tmp_path, COUNTS, seed=3, workers=1)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(QrayError, match="file is a file; name a folder"):
        synthesize(tmp_path / "file", COUNTS, seed=3, workers=1)


def test_a_killed_run_leaves_no_half_video_and_no_process_and_is_resumed(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    script = tmp_path / "make.py"
    script.write_text(MAKE.format(root=str(root), counts={**COUNTS, "TRAIN": 80}), encoding="utf-8")
    process = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 60
    while len(list(root.glob("Videos/*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    left = digests(root, lists=False)
    assert 4 <= len(left) < 80
    assert all(probe(root / "Videos" / name).error is None for name in left)
    assert not is_complete(root, COUNTS, seed=3)
    synthesize(root, COUNTS, seed=3, workers=1)
    assert digests(made).items() <= digests(root).items()
