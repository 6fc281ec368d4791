"""Frames are the right ones: by number, in every codec, at every size, under every way of sampling."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import av
import numpy as np
import pytest
from support.videos import number_of, numbered_frames, write_video

from qray.data.decode import ClipError, decode_frames, evaluation_indices, training_indices
from qray.data.probe import probe
from qray.study import ClipSpec

FRAMES = 40
#: Codec and container; x264 and x265 write B-frames, libvpx and SVT-AV1 hidden frames, by default.
CODECS = {
    "mjpeg.avi": ("mjpeg", "yuvj420p"),
    "mjpeg.mov": ("mjpeg", "yuvj420p"),
    "h264.avi": ("libx264", "yuv420p"),
    "h264.mp4": ("libx264", "yuv420p"),
    "h264.mkv": ("libx264", "yuv420p"),
    "h264.mov": ("libx264", "yuv420p"),
    "hevc.mp4": ("libx265", "yuv420p"),
    "hevc10.mkv": ("libx265", "yuv420p10le"),
    "vp9.webm": ("libvpx-vp9", "yuv420p"),
    "vp9.mp4": ("libvpx-vp9", "yuv420p"),
    "av1.mp4": ("libsvtav1", "yuv420p"),
    "av1.webm": ("libsvtav1", "yuv420p"),
    "lossless.mkv": ("ffv1", "yuv444p"),
    "png.avi": ("png", "rgb24"),
}


class Allocations(ctypes.Structure):
    """What mallinfo2(3) returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                     "keepcost")
    ]  # fmt: skip


def allocated() -> int:
    """Bytes that this process has of malloc: in its heaps, and as maps of their own."""
    gc.collect()
    tell = ctypes.CDLL(None).mallinfo2
    tell.restype = Allocations
    told = tell()
    return int(told.uordblks + told.hblkhd)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codecs")
    for name, (codec, pixel_format) in CODECS.items():
        write_video(folder / name, numbered_frames(FRAMES), codec, pixel_format)
    return folder


def numbers(path: Path, wanted: np.ndarray, image_size: int = 64) -> np.ndarray:
    """The numbers that the decoded frames show, (W, T)."""
    frames = decode_frames(path, np.atleast_2d(wanted), image_size)
    return np.array([[number_of(frame) for frame in window] for window in frames])


def assert_numbers(shown: np.ndarray, wanted: np.ndarray) -> None:
    # Lossy codecs are off by up to two grey levels, half the distance between neighbours.
    assert np.abs(shown - wanted).max() < 0.75, (shown, wanted)
    steps = np.diff(wanted, axis=-1)
    assert (np.sign(np.diff(shown, axis=-1)) == np.sign(steps)).all(), (shown, wanted)


@pytest.mark.parametrize("name", CODECS)
def test_every_frame_of_every_codec_is_found_by_its_number(videos: Path, name: str) -> None:
    wanted = np.arange(FRAMES)[None]
    assert_numbers(numbers(videos / name, wanted), wanted)


@pytest.mark.parametrize("name", CODECS)
def test_some_frames_decode_to_the_same_pixels_as_all_frames_do(videos: Path, name: str) -> None:
    every = decode_frames(videos / name, np.arange(FRAMES)[None], 48)[0]
    wanted = np.array([[3, 0, 17, FRAMES - 1], [17, 17, 2, 30]])
    assert (decode_frames(videos / name, wanted, 48) == every[wanted]).all()


@pytest.mark.parametrize("name", CODECS)
def test_the_probe_counts_the_frames_of_every_codec(videos: Path, name: str) -> None:
    facts = probe(videos / name)
    assert (facts.error, facts.n_frames, facts.width, facts.height) == (None, FRAMES, 64, 64)


@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mp4"])
def test_the_b_frame_samples_do_hold_frames_out_of_order(videos: Path, name: str) -> None:
    with av.open(str(videos / name)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert times != sorted(times)


def test_hidden_frames_of_vp9_are_not_numbered(tmp_path: Path) -> None:
    path = tmp_path / "hidden.webm"
    noise = np.random.default_rng(0).integers(-8, 9, (FRAMES, 96, 96, 3))
    frames = (numbered_frames(FRAMES, 96, 96) + noise).clip(0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        options = {"auto-alt-ref": "6", "lag-in-frames": "25", "arnr-maxframes": "7"}
        stream = container.add_stream("libvpx-vp9", rate=50, options=options)
        stream.width = stream.height = 96
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    wanted = np.arange(FRAMES)[None]
    assert probe(path).n_frames == FRAMES
    assert_numbers(numbers(path, wanted), wanted)


@pytest.mark.parametrize(("codec", "ending"), [("libx264", "mp4"), ("mjpeg", "mov")])
def test_frames_that_an_edit_list_cuts_off_are_not_numbered(tmp_path: Path, codec: str, ending: str) -> None:
    path, cut = tmp_path / f"cut.{ending}", 10
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream(codec, rate=50)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number, picture in enumerate(numbered_frames(FRAMES)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number - cut
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    facts = probe(path)
    assert (facts.error, facts.n_frames) == (None, FRAMES - cut)
    assert_numbers(numbers(path, np.arange(FRAMES - cut)[None]), np.arange(cut, FRAMES)[None])


@pytest.mark.parametrize(("width", "height"), [(65, 47), (320, 240), (48, 200), (16, 16), (2, 2)])
def test_videos_of_any_size_become_square_clips(tmp_path: Path, width: int, height: int) -> None:
    path = write_video(tmp_path / "clip.avi", numbered_frames(5, height, width))
    facts = probe(path)
    assert (facts.error, facts.width, facts.height) == (None, width, height)
    wanted = np.arange(5)[None]
    assert_numbers(numbers(path, wanted, 112), wanted)


def test_odd_sizes_decode_from_predicted_frames_too(tmp_path: Path) -> None:
    path = write_video(tmp_path / "odd.mkv", numbered_frames(20, 47, 65), "libx264", "yuv444p")
    wanted = np.arange(20)[None]
    assert_numbers(numbers(path, wanted), wanted)


@pytest.mark.parametrize("fps", [1, 12, 240])
def test_the_frame_rate_is_read_and_changes_no_frame_number(tmp_path: Path, fps: int) -> None:
    path = write_video(tmp_path / "clip.mp4", numbered_frames(12), "libx264", "yuv420p", fps)
    assert probe(path).fps == fps
    wanted = np.arange(12)[None]
    assert_numbers(numbers(path, wanted), wanted)


def test_a_video_of_one_frame_fills_a_clip(tmp_path: Path) -> None:
    path = write_video(tmp_path / "still.avi", numbered_frames(1))
    indices = evaluation_indices(probe(path).n_frames, ClipSpec(frames=4, eval_windows=2))
    assert_numbers(numbers(path, indices), np.zeros((2, 4)))


def test_left_and_right_top_and_bottom_and_colours_stay_where_they_are(tmp_path: Path) -> None:
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    frames[:, :32, :32, 0] = frames[:, :32, 32:, 1] = frames[:, 32:, :32, 2] = 255
    clip = decode_frames(write_video(tmp_path / "quarters.mkv", frames, "ffv1", "yuv444p"), np.array([[0, 1]]), 32)
    corners = clip[0, 0, [4, 4, 28, 28], [4, 28, 4, 28]]
    assert (corners > 200).tolist() == [[True, False, False], [False, True, False], [False, False, True], [False] * 3]


def test_uniform_sampling_spreads_from_the_first_frame_to_the_last() -> None:
    spec = ClipSpec(frames=5, sampling="uniform")
    assert evaluation_indices(41, spec).tolist() == [[0, 10, 20, 30, 40]]
    assert training_indices(41, spec, np.random.default_rng(0)).tolist() == [[0, 10, 20, 30, 40]]


def test_uniform_sampling_of_a_short_video_repeats_frames_in_order() -> None:
    assert evaluation_indices(3, ClipSpec(frames=6, sampling="uniform")).tolist() == [[0, 0, 1, 1, 2, 2]]


def test_evaluation_windows_start_at_the_first_frame_and_end_at_the_last() -> None:
    windows = evaluation_indices(41, ClipSpec(frames=3, stride=4, eval_windows=3))
    assert windows.tolist() == [[0, 4, 8], [16, 20, 24], [32, 36, 40]]


def test_a_single_evaluation_window_lies_in_the_middle() -> None:
    assert evaluation_indices(41, ClipSpec(frames=3, stride=4, eval_windows=1)).tolist() == [[16, 20, 24]]


def test_training_windows_cover_every_start_that_fits() -> None:
    spec, rng = ClipSpec(frames=3, stride=4), np.random.default_rng(0)
    windows = np.concatenate([training_indices(12, spec, rng) for _ in range(200)])
    assert set(windows[:, 0]) == {0, 1, 2, 3}
    assert (np.diff(windows, axis=1) == 4).all()


def test_windows_longer_than_the_video_wrap_round(videos: Path) -> None:
    spec = ClipSpec(frames=4, stride=3, eval_windows=1)
    assert evaluation_indices(5, spec).tolist() == [[0, 3, 1, 4]]
    assert training_indices(5, spec, np.random.default_rng(0)).tolist() == [[0, 3, 1, 4]]


@pytest.mark.parametrize("spec", [ClipSpec(frames=8, sampling="uniform"), ClipSpec(frames=8, stride=4, eval_windows=3)])
@pytest.mark.parametrize("name", ["mjpeg.avi", "h264.mp4", "hevc.mp4", "vp9.webm", "av1.mp4"])
def test_sampled_clips_show_the_frames_that_were_asked_for(videos: Path, name: str, spec: ClipSpec) -> None:
    indices = evaluation_indices(FRAMES, spec)
    assert_numbers(numbers(videos / name, indices), indices)


def test_a_frame_past_the_end_is_an_error_that_names_it(videos: Path) -> None:
    with pytest.raises(ClipError, match="ends before frame 40"):
        decode_frames(videos / "h264.mp4", np.array([[0, 40]]), 32)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="only glibc tells what is allocated")
@pytest.mark.parametrize("name", ["mjpeg.avi", "h264.mp4", "vp9.webm"])
def test_decoding_the_start_of_a_video_again_and_again_takes_no_memory(videos: Path, name: str) -> None:
    def decode(times: int) -> int:
        for _ in range(times):
            decode_frames(videos / name, np.arange(4)[None], 32)
        return allocated()

    before = decode(300)
    assert decode(1000) - before < 60 * 1000


def test_a_missing_file_is_a_clip_error(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="file not found"):
        decode_frames(tmp_path / "no.avi", np.array([[0]]), 32)


def test_a_damaged_frame_is_an_error_rather_than_a_made_up_picture(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", numbered_frames(FRAMES), "mjpeg", "yuvj420p")
    with av.open(str(path)) as container:
        at = [packet.pos for packet in container.demux(video=0) if packet.size][20]
    content = bytearray(path.read_bytes())
    content[at : at + 300] = bytes(range(256))[:44] + b"\x55" * 256
    path.write_bytes(content)
    with pytest.raises(ClipError, match="frame 20"):
        decode_frames(path, np.array([[20]]), 32)
