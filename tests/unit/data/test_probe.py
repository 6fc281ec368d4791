"""Files that are no clips are told from those that are, whatever they contain, with a reason in a line."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from support.videos import numbered_frames, write_video

from qray.data.decode import ClipError, decode_frames
from qray.data.probe import probe

FRAMES = 30
SOURCES = {
    "mjpeg.avi": ("mjpeg", "yuvj420p"),
    "h264.avi": ("libx264", "yuv420p"),
    "mjpeg.mov": ("mjpeg", "yuvj420p"),
    "h264.mp4": ("libx264", "yuv420p"),
    "h264.mkv": ("libx264", "yuv420p"),
    "vp9.webm": ("libvpx-vp9", "yuv420p"),
}


def _textured() -> np.ndarray:
    texture = np.random.default_rng(0).integers(0, 60, (64, 64, 3))
    return (numbered_frames(FRAMES) + texture).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name, (codec, pixel_format) in SOURCES.items():
        write_video(folder / name, _textured(), codec, pixel_format)
    return folder


def reason(path: Path) -> str:
    error = probe(path).error
    assert error is not None, "the file was accepted"
    assert "\n" not in error
    return error


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_file_that_was_cut_short_is_rejected(videos: Path, tmp_path: Path, name: str, share: float) -> None:
    content = (videos / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(share * len(content))])
    assert "truncated" in reason(path)


def test_an_mp4_that_lost_its_index_at_the_end_is_rejected(videos: Path, tmp_path: Path) -> None:
    content = (videos / "h264.mp4").read_bytes()
    path = tmp_path / "no-index.mp4"
    path.write_bytes(content[: content.index(b"moov") - 4])
    assert "cannot be decoded" in reason(path)


def test_an_mp4_with_its_index_in_front_and_its_frames_cut_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "fast.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=50)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for picture in _textured():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert probe(path).error is None
    path.write_bytes(path.read_bytes()[:-20])
    assert "truncated" in reason(path)


def test_a_recording_without_a_declared_length_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "live.webm"
    with av.open(str(path), "w", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=50)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for picture in numbered_frames(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert (probe(path).error, probe(path).n_frames) == (None, 10)


@pytest.mark.parametrize("name", ["mjpeg.avi", "mjpeg.mov", "h264.mp4", "h264.mkv"])
def test_garbage_in_the_middle_is_rejected(videos: Path, tmp_path: Path, name: str) -> None:
    content = bytearray((videos / name).read_bytes())
    start, stop = int(0.45 * len(content)), int(0.6 * len(content))
    content[start:stop] = np.random.default_rng(0).bytes(stop - start)
    path = tmp_path / name
    path.write_bytes(content)
    assert reason(path)


def test_an_empty_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "empty.avi"
    path.touch()
    assert reason(path) == "empty file"


def test_a_missing_file_is_rejected(tmp_path: Path) -> None:
    assert reason(tmp_path / "missing.avi") == "file not found"


def test_text_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "text.avi"
    path.write_text("not a video\n" * 200, encoding="utf-8")
    assert "cannot be decoded" in reason(path)


def test_a_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "folder.avi").mkdir()
    assert reason(tmp_path / "folder.avi") == "not a file"


def test_a_pipe_is_rejected_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.avi")
    assert reason(tmp_path / "pipe.avi") == "not a file"


def _write_sound(path: Path, cover: bytes | None = None) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        picture = None
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        for _ in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        if picture is not None:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(numbered_frames(1)[0], format="rgb24")))
            container.mux(picture.encode(None))
        container.mux(stream.encode(None))
    return path


def test_sound_without_pictures_is_rejected(tmp_path: Path) -> None:
    assert reason(_write_sound(tmp_path / "sound.mp4")) == "no video stream"


def test_the_cover_of_a_sound_file_is_no_video(tmp_path: Path) -> None:
    assert reason(_write_sound(tmp_path / "song.mp4", cover=b"yes")) == "no video stream"


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {0}\n"]
)
def test_a_playlist_does_not_lead_to_other_files(tmp_path: Path, text: str) -> None:
    write_video(tmp_path / "private.ts", _textured(), "libx264", "yuv420p")
    path = tmp_path / "list.avi"
    path.write_text(text.format("private.ts"), encoding="utf-8")
    assert "cannot be decoded" in reason(path)


def test_an_avi_with_a_title_in_another_encoding_is_accepted(videos: Path, tmp_path: Path) -> None:
    path = tmp_path / "title.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE-HERE"
        stream = container.add_stream("mjpeg", rate=50)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        for picture in numbered_frames(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"TITLE-HERE", b"\xc9cho \xe0 voir"[:10].ljust(10)))
    assert probe(path).error is None


def test_a_codec_without_a_decoder_is_rejected(videos: Path, tmp_path: Path) -> None:
    path = tmp_path / "unknown.avi"
    path.write_bytes((videos / "mjpeg.avi").read_bytes().replace(b"MJPG", b"QX9Z"))
    assert reason(path)


def test_the_digest_follows_the_content_and_not_the_name(videos: Path, tmp_path: Path) -> None:
    content = (videos / "mjpeg.avi").read_bytes()
    (tmp_path / "other.avi").write_bytes(content)
    (tmp_path / "longer.avi").write_bytes(content + b"\0")
    original = probe(videos / "mjpeg.avi").digest
    assert probe(tmp_path / "other.avi").digest == original != probe(tmp_path / "longer.avi").digest


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("kind", ["flips", "garbage", "shuffle"])
def test_no_damage_to_a_file_raises_more_than_a_clip_error(videos: Path, tmp_path: Path, name: str, kind: str) -> None:
    content = np.frombuffer((videos / name).read_bytes(), np.uint8)
    path = tmp_path / name
    for seed in range(25):
        rng, damaged = np.random.default_rng(seed), content.copy()
        # Headers are where a decoder is led astray, so half of the damage is done there.
        reach = len(content) if seed % 2 else min(2500, len(content))
        at = rng.integers(0, reach, 20)
        if kind == "flips":
            damaged[at] ^= (1 << rng.integers(0, 8, 20)).astype(np.uint8)
        elif kind == "garbage":
            damaged[at[0] : at[0] + 64] = rng.integers(0, 256, len(damaged[at[0] : at[0] + 64]))
        else:
            damaged = np.roll(damaged, at[0])
        path.write_bytes(damaged.tobytes())
        facts = probe(path)
        if facts.error is None:
            # Damage that the file's own checks cannot see; what was counted must be there.
            assert decode_frames(path, np.array([[0, facts.n_frames - 1]]), 32).shape == (1, 2, 32, 32, 3)
        else:
            with suppress(ClipError):
                decode_frames(path, np.array([[0, 1]]), 32)


def test_random_bytes_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "noise.avi"
    for seed in range(40):
        path.write_bytes(np.random.default_rng(seed).bytes(3000))
        assert reason(path)
