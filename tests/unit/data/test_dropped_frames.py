"""A recorder that missed frames leaves a healthy file; a file that lost frames is damaged; headers settle neither."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from support.avi import drop_frames, frames_of
from support.videos import number_of, numbered_frames, write_video

from qray.data.decode import all_frames, decode_frames, open_video
from qray.data.probe import probe

FRAMES = 18


def mjpeg(path: Path, count: int = FRAMES) -> Path:
    return write_video(path, numbered_frames(count, 32, 32))


def shown(path: Path) -> list[int]:
    """The numbers that all frames show, by every way of reading them."""
    facts = probe(path)
    assert facts.error is None
    wanted = np.arange(facts.n_frames)[None]
    numbers = [round(number_of(frame)) for frame in decode_frames(path, wanted, 32)[0]]
    singly = [round(number_of(decode_frames(path, np.array([[n]]), 32)[0, 0])) for n in range(facts.n_frames)]
    with open_video(path) as (container, stream):
        through = [round(number_of(frame.to_ndarray(format="rgb24"))) for frame in all_frames(container, stream)]
    assert numbers == singly == through
    return numbers


@pytest.mark.parametrize("index", [True, False], ids=["index", "no-index"])
@pytest.mark.parametrize(
    ("dropped", "expected"),
    [
        ((5, 11), [0, 1, 2, 3, 4, 4, 6, 7, 8, 9, 10, 10, 12, 13, 14, 15, 16, 17]),
        ((5, 6, 7), [0, 1, 2, 3, 4, 4, 4, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]),
        ((0, 1), list(range(2, 18))),
        ((16, 17), list(range(16))),
    ],
    ids=["apart", "in-a-row", "at-the-start", "at-the-end"],
)
def test_a_dropped_frame_shows_the_one_before_it_again(
    tmp_path: Path, dropped: tuple[int, ...], expected: list[int], index: bool
) -> None:
    assert shown(drop_frames(mjpeg(tmp_path / "a.avi"), dropped, index)) == expected


def test_frames_between_dropped_ones_keep_their_time(tmp_path: Path) -> None:
    whole, path = shown(mjpeg(tmp_path / "whole.avi")), drop_frames(mjpeg(tmp_path / "a.avi"), (3, 9, 10))
    assert {n: number for n, number in enumerate(shown(path)) if n not in (3, 9, 10)} == {
        n: number for n, number in enumerate(whole) if n not in (3, 9, 10)
    }


def test_frames_dropped_between_predicted_ones_show_the_one_before_again(tmp_path: Path) -> None:
    stored, options = [0, 1, 2, 5, 6, 10, 11], {"bf": "0", "crf": "5"}
    path = write_video(tmp_path / "a.avi", numbered_frames(12)[stored], "libx264", "yuv420p",
                       options=options, times=stored)  # fmt: skip
    assert b"00dc\0\0\0\0" in path.read_bytes()
    assert shown(path) == [0, 1, 2, 2, 2, 5, 6, 6, 6, 6, 10, 11]


def test_frames_dropped_among_reordered_ones_lose_none(tmp_path: Path) -> None:
    stored = [0, 1, 2, 5, 6, 7, 10, 11, 12, 14]
    path = write_video(tmp_path / "a.avi", numbered_frames(15)[stored], "libx264", "yuv420p", times=stored)
    numbers = shown(path)
    assert sorted(set(numbers)) == stored
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("count", [0, 1, FRAMES - 4, FRAMES + 7, 10**6])
def test_a_header_with_another_count_changes_nothing(tmp_path: Path, count: int) -> None:
    assert shown(drop_frames(mjpeg(tmp_path / "a.avi"), (), count=count)) == list(range(FRAMES))


@pytest.mark.parametrize(
    ("ending", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("mp4", "mjpeg"), ("mkv", "ffv1")]
)
def test_frames_that_are_shown_longer_are_one_frame_each_where_each_has_its_time(
    tmp_path: Path, ending: str, codec: str
) -> None:
    times = [0, 1, 2, 9, 10, 30]
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / f"a.{ending}", numbered_frames(6), codec, pixel_format, times=times)
    assert shown(path) == list(range(6))


def test_times_that_leap_further_than_chunks_fit_the_file_repeat_nothing(tmp_path: Path) -> None:
    content = bytearray(mjpeg(tmp_path / "a.avi").read_bytes())
    # strh: dwSampleSize, the 12th number, makes FFmpeg count bytes in place of frames.
    at = content.index(b"strh") + 8 + 44
    for size in (1, 7, 2**31 - 1):
        content[at : at + 4] = size.to_bytes(4, "little")
        (tmp_path / "b.avi").write_bytes(content)
        assert probe(tmp_path / "b.avi").n_frames in range(FRAMES + len(content) // 8)


@pytest.mark.parametrize("filling", ["zeros", "garbage"])
@pytest.mark.parametrize("count", [None, 0, 5], ids=["count", "no-count", "small-count"])
def test_an_avi_whose_chunks_were_overwritten_is_damaged(tmp_path: Path, filling: str, count: int | None) -> None:
    path = drop_frames(mjpeg(tmp_path / "a.avi"), (), count=count)
    content = bytearray(path.read_bytes())
    places = [at for at, _ in frames_of(bytes(content))]
    start, stop = places[6], places[9]
    content[start:stop] = bytes(stop - start) if filling == "zeros" else np.random.default_rng(0).bytes(stop - start)
    path.write_bytes(content)
    assert probe(path).error is not None


def test_an_avi_that_lost_bytes_in_the_middle_is_damaged(tmp_path: Path) -> None:
    path = mjpeg(tmp_path / "a.avi")
    content = path.read_bytes()
    at = frames_of(content)[8][0]
    path.write_bytes(content[:at] + content[at + 100 :])
    assert probe(path).error is not None


@pytest.mark.parametrize(
    ("ending", "codec"), [("mkv", "mjpeg"), ("mkv", "ffv1"), ("webm", "libvpx-vp9"), ("ts", "mpeg2video")]
)
def test_whole_packets_that_were_overwritten_are_missed(tmp_path: Path, ending: str, codec: str) -> None:
    texture = np.random.default_rng(0).integers(0, 60, (64, 64, 3))
    frames = (numbered_frames(30) + texture).clip(0, 255).astype(np.uint8)
    path = write_video(tmp_path / f"a.{ending}", frames, codec, "yuvj420p" if codec == "mjpeg" else "yuv420p")
    assert probe(path).error is None
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size and packet.pos is not None]
    content = bytearray(path.read_bytes())
    content[places[20] : places[25]] = bytes(places[25] - places[20])
    path.write_bytes(content)
    assert probe(path).error is not None
