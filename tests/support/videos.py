"""Small real videos for tests: any codec, any size, with frames whose number can be read back from their brightness."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

STEP = 4


def numbered_frames(count: int, height: int = 64, width: int = 64) -> np.ndarray:
    """uint8 (count, height, width, 3): frame i is grey at level 16 + STEP * i (up to 59 frames)."""
    levels = (16 + STEP * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def number_of(frame: np.ndarray) -> float:
    """The number that a frame of `numbered_frames` shows; codecs are lossy, so round it."""
    return (float(frame.mean()) - 16) / STEP


def write_video(
    path: Path,
    frames: np.ndarray,
    codec: str = "mjpeg",
    pixel_format: str = "yuvj420p",
    fps: int = 50,
    *,
    set_up: Callable[[Any], None] = lambda stream: None,
    options: Mapping[str, str] | None = None,
    times: Sequence[int] | None = None,
    convert: Mapping[str, Any] | None = None,
) -> Path:
    """Encode uint8 (N, H, W, 3) RGB frames; the container follows the file's ending.

    set_up changes the stream before it is opened; options are the encoder's; times are those of the frames, in
    frames; convert is handed to the conversion from RGB.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(codec, rate=fps, options=dict(options or {}))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = pixel_format
            set_up(stream)
            for number, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if convert is not None:
                    frame = frame.reformat(format=pixel_format, **convert)
                frame.pts = number if times is None else times[number]
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    finally:
        # SVT-AV1, run as root, leaves its caller at real-time priority, which every Ray that the tests start would
        # inherit: its workers then spin, and starve what they wait for.
        if hasattr(os, "sched_setscheduler"):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def write_file_list(folder: Path, rows: Sequence[Sequence[object]], header: Sequence[str]) -> Path:
    """Write FileList.csv."""
    path = folder / "FileList.csv"
    lines = [",".join(header), *[",".join(str(cell) for cell in row) for row in rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


#: A file has 65,000 names at most on ext4.
NAMES_OF_A_FILE = 50_000


def write_many_clips(root: Path, rows: int) -> Path:
    """A data set of so many clips of six frames: names of a few files, and its FileList.csv."""
    videos = root / "Videos"
    videos.mkdir(parents=True)
    files = max(20, -(-rows // NAMES_OF_A_FILE))
    made = [write_video(root / "made" / f"{i}.avi", numbered_frames(6 + i % 10, 32, 32)) for i in range(files)]
    splits = ("TRAIN", "TRAIN", "VAL", "TEST")
    with (root / "FileList.csv").open("w", encoding="utf-8") as listed:
        listed.write("FileName,EF,Split\n")
        for row in range(rows):
            os.link(made[row % files], videos / f"{row:07d}.avi")
            listed.write(f"{row:07d},{20 + row % 60}.{row % 10},{splits[row % 4]}\n")
    return root
