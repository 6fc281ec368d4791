"""The same picture, however it is stored, becomes the same clip: the one that a player shows."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from support.videos import write_video

from qray.data.decode import ClipError, decode_frames
from qray.data.probe import probe

ONE = 65536
#: Rotation counter-clockwise in degrees and mirroring after it, by what shows the same picture in NumPy.
TURNS: dict[str, tuple[tuple[int, bool, bool], Callable[[np.ndarray], np.ndarray]]] = {
    "quarter": ((90, False, False), lambda picture: np.rot90(picture, 1)),
    "half": ((180, False, False), lambda picture: np.rot90(picture, 2)),
    "three-quarters": ((270, False, False), lambda picture: np.rot90(picture, 3)),
    "mirrored": ((0, True, False), lambda picture: picture[:, ::-1]),
    "upside-down": ((0, False, True), lambda picture: picture[::-1]),
    "quarter-mirrored": ((90, True, False), lambda picture: np.rot90(picture, 1)[:, ::-1]),
    "quarter-upside-down": ((90, False, True), lambda picture: np.rot90(picture, 1)[::-1]),
}
CONTAINERS = {"mp4": ("libx264", "yuv420p"), "mov": ("mjpeg", "yuvj420p"), "mkv": ("ffv1", "yuv420p")}


def quarters(height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (3, H, W, 3): four colours, of which no turn or mirror image shows the same."""
    picture = np.full((height, width, 3), 20, np.uint8)
    picture[: height // 2, : width // 2] = 220, 30, 30
    picture[: height // 2, width // 2 :] = 30, 200, 30
    picture[height // 2 :, : width // 2] = 30, 30, 220
    return np.stack([picture] * 3)


def corners(path: Path) -> np.ndarray:
    """int64 (2, 2, 3): the colours in the middle of the four quarters of the clip."""
    clip = decode_frames(path, np.array([[1]]), 32)[0, 0].astype(np.int64)
    return clip[np.ix_([8, 24], [8, 24])]


def colours(frames: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1:3]
    return frames[0][np.ix_([height // 4, 3 * height // 4], [width // 4, 3 * width // 4])].astype(np.int64)


@pytest.mark.parametrize("ending", CONTAINERS)
@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_turned_as_the_file_asks(tmp_path: Path, turn: str, ending: str) -> None:
    (degrees, hflip, vflip), same = TURNS[turn]

    def ask(stream: Any) -> None:
        stream.set_display_rotation(degrees, hflip=hflip, vflip=vflip)

    path = write_video(tmp_path / f"turned.{ending}", quarters(), *CONTAINERS[ending], set_up=ask)
    assert np.abs(corners(path) - same(colours(quarters()))).max() <= 6
    facts = probe(path)
    assert (facts.error, (facts.height, facts.width)) == (None, same(np.zeros((48, 64))).shape)


def test_one_sequence_stored_three_ways_is_the_same_clip(tmp_path: Path) -> None:
    clips = []
    for degrees in (0, 90, 180):
        stored = np.rot90(quarters(), -degrees // 90, axes=(1, 2)).copy()
        path = write_video(tmp_path / f"{degrees}.mp4", stored, "libx264", "yuv420p",
                           set_up=lambda stream, degrees=degrees: stream.set_display_rotation(degrees))  # fmt: skip
        facts = probe(path)
        assert (facts.error, facts.width, facts.height) == (None, 64, 48)
        clips.append(decode_frames(path, np.array([[0, 2]]), 32).astype(np.int64))
    # Along the edges of the colours chroma, which is stored at half the size, is what each orientation makes of it.
    for clip in clips[1:]:
        assert np.median(np.abs(clip - clips[0])) <= 2
        assert np.abs(clip - clips[0]).mean() < 4


@pytest.mark.parametrize(
    "matrix",
    [
        (46341, 46341, 0, -46341, 46341, 0, 0, 0, 2**30),
        (ONE, 20000, 0, 0, ONE, 0, 0, 0, 2**30),
        (0, 0, 0, 0, 0, 0, 0, 0, 2**30),
        (ONE, 0, 4000, 0, ONE, 0, 0, 0, 2**30),
    ],
    ids=["an eighth", "a shear", "nothing", "a perspective"],
)
def test_a_turn_that_no_clip_can_follow_is_rejected_in_a_sentence(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    path = write_video(tmp_path / "odd.mp4", quarters(), set_up=lambda stream: stream.set_display_matrix(matrix))
    assert "no quarter turn or mirror image; store the frames upright" in str(probe(path).error)
    with pytest.raises(ClipError, match="display matrix"):
        decode_frames(path, np.array([[0]]), 32)


def test_a_display_matrix_that_only_moves_the_picture_changes_nothing(tmp_path: Path) -> None:
    moved = (ONE, 0, 0, 0, ONE, 0, 7 * ONE, 9 * ONE, 2**30)
    path = write_video(tmp_path / "moved.mp4", quarters(), set_up=lambda stream: stream.set_display_matrix(moved))
    assert np.abs(corners(path) - colours(quarters())).max() <= 6


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize(("aspect", "width"), [(Fraction(16, 11), 93), (Fraction(1, 2), 32)])
def test_pixels_that_are_not_square_change_the_size_that_is_listed_and_no_clip(
    tmp_path: Path, ending: str, aspect: Fraction, width: int
) -> None:
    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = aspect

    square = write_video(tmp_path / f"square.{ending}", quarters(), "libx264", "yuv420p")
    path = write_video(tmp_path / f"wide.{ending}", quarters(), "libx264", "yuv420p", set_up=wide)
    assert (probe(path).width, probe(path).height) == (width, 48)
    wanted = np.array([[0, 1]])
    assert (decode_frames(path, wanted, 32) == decode_frames(square, wanted, 32)).all()


def test_wide_pixels_of_a_turned_video_are_tall_ones(tmp_path: Path) -> None:
    def ask(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        stream.set_display_rotation(90)

    path = write_video(tmp_path / "both.mp4", quarters(), "libx264", "yuv420p", set_up=ask)
    assert (probe(path).width, probe(path).height) == (48, 128)


LIMITED, FULL = 1, 2
BT709, BT601, BT2020 = 1, 5, 9


@pytest.mark.parametrize("colour_range", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [BT709, BT601, BT2020])
@pytest.mark.parametrize(
    ("ending", "codec", "pixel_format"),
    [("mkv", "ffv1", "yuv444p"), ("mp4", "libx264", "yuv420p"), ("mp4", "libx264", "yuv420p10le")],
)
def test_range_and_matrix_are_read_from_the_file(
    tmp_path: Path, colour_range: int, matrix: int, ending: str, codec: str, pixel_format: str
) -> None:
    def tag(stream: Any) -> None:
        stream.codec_context.color_range, stream.codec_context.colorspace = colour_range, matrix

    path = write_video(tmp_path / f"a.{ending}", quarters(), codec, pixel_format, set_up=tag,
                       convert={"dst_colorspace": matrix, "dst_color_range": colour_range})  # fmt: skip
    assert np.abs(corners(path) - colours(quarters())).max() <= 4


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("full.avi", "mjpeg", "yuvj420p"),
        ("full.mp4", "libx264", "yuvj420p"),
        ("untagged.avi", "mpeg4", "yuv420p"),
        ("untagged.webm", "libvpx-vp9", "yuv420p"),
        ("rgb.avi", "png", "rgb24"),
        ("rgb.mkv", "ffv1", "bgr0"),
        ("rgb.mp4", "libx264rgb", "rgb24"),
        ("raw.avi", "rawvideo", "bgr24"),
    ],
)
def test_the_same_picture_has_the_same_colours_in_every_pixel_format(
    tmp_path: Path, name: str, codec: str, pixel_format: str
) -> None:
    path = write_video(tmp_path / name, quarters(), codec, pixel_format)
    assert np.abs(corners(path) - colours(quarters())).max() <= 6


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [("a.mkv", "ffv1", "gray"), ("a.avi", "png", "gray"), ("a.mkv", "ffv1", "gray10le")],
)
def test_grey_levels_are_kept_from_black_to_white(tmp_path: Path, name: str, codec: str, pixel_format: str) -> None:
    levels = np.linspace(0, 255, 64).astype(np.uint8)
    frames = np.broadcast_to(levels[None, None, :, None], (2, 48, 64, 3)).copy()
    path = write_video(tmp_path / name, frames, codec, pixel_format)
    clip = decode_frames(path, np.array([[0]]), 64)[0, 0].astype(np.int64)
    assert np.abs(clip[16] - levels[:, None]).max() <= 3


def test_grey_levels_of_a_jpeg_without_colours_are_kept(tmp_path: Path) -> None:
    levels = np.linspace(0, 255, 64).astype(np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(np.broadcast_to(levels, (48, 64)).copy()).save(jpeg, "JPEG", quality=95)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(2):
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
    clip = decode_frames(tmp_path / "a.avi", np.array([[0]]), 64)[0, 0].astype(np.int64)
    assert np.abs(clip[16] - levels[:, None]).max() <= 3


def moving_bar(count: int) -> np.ndarray:
    """uint8 (count, 64, 64, 3): a bright bar that moves by 2 pixels a field over what stands still."""
    fields = np.full((2 * count, 64, 64, 3), 40, np.uint8)
    fields[:, :, 56:] = 120
    for at, field in enumerate(fields):
        field[:, 2 * at : 2 * at + 8] = 220
    woven = fields[::2].copy()
    woven[:, 1::2] = fields[1::2, 1::2]
    return woven


#: Container, codec, pixel format and the options with which it stores fields. ProRes is decoded frame by frame.
INTERLACED = {
    "a.mpg": ("mpeg2video", "yuv420p", {"flags": "+ildct+ilme", "b": "8M"}),
    "a.mp4": ("libx264", "yuv420p", {"x264-params": "tff=1", "crf": "10"}),
    "a.avi": ("mpeg4", "yuv420p", {"flags": "+ildct+ilme", "b": "8M"}),
    "a.mov": ("prores_ks", "yuv422p10le", {"flags": "+ildct"}),
}


@pytest.mark.parametrize("name", INTERLACED)
def test_interlaced_frames_show_one_moment_each(tmp_path: Path, name: str) -> None:
    codec, pixel_format, options = INTERLACED[name]
    path = write_video(tmp_path / name, moving_bar(10), codec, pixel_format, 25, options=options)
    facts = probe(path)
    assert (facts.error, facts.n_frames) == (None, 10)
    clip = decode_frames(path, np.arange(10)[None], 64)[0]
    edges = (clip[:, 16:48, :, 0] > 130).argmax(axis=2)
    assert np.ptp(edges, axis=1).max() <= 1
    assert np.abs(np.diff(np.median(edges, axis=1)) - 4).max() <= 1


def test_some_interlaced_frames_are_the_same_as_all_of_them(tmp_path: Path) -> None:
    codec, pixel_format, options = INTERLACED["a.mov"]
    path = write_video(tmp_path / "a.mov", moving_bar(10), codec, pixel_format, 25, options=options)
    every = decode_frames(path, np.arange(10)[None], 32)[0]
    wanted = np.array([[3, 0], [9, 4]])
    assert (decode_frames(path, wanted, 32) == every[wanted]).all()


def test_what_stands_still_keeps_all_its_lines_though_it_is_interlaced(tmp_path: Path) -> None:
    still = np.zeros((4, 64, 64, 3), np.uint8)
    still[:, 10:30:2] = 200
    path = write_video(tmp_path / "a.mp4", still, "libx264", "yuv420p", options={"x264-params": "tff=1", "crf": "1"})
    clip = decode_frames(path, np.array([[1]]), 64)[0, 0].astype(np.int64)
    assert np.abs(clip - still[0]).max() < 25
