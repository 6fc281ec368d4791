"""What a file is, before anything relies on it: frames, size, rate, a digest of its bytes, or why it is no clip."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qray.data.containers import broken_at, declared_size
from qray.data.decode import ClipError, all_frames, open_video
from qray.data.shown import shown_size, turn_of

#: Of a file, which is read as a whole.
MAX_BYTES = 16 * 2**30
#: Raised when the same file may give other facts, or other pictures; older facts are then read again.
PROBE_VERSION = 2


@dataclass(frozen=True, slots=True)
class Probe:
    """Facts about one file. `error` is None for a good clip, else the reason in a line; then the rest may be 0.

    n_frames counts a dropped frame of an AVI as the repetition that a player shows; width and height are as shown.
    """

    size_bytes: int
    digest: str
    n_frames: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    error: str | None = None


def probe(path: Path) -> Probe:
    """Read a file and judge it: every frame is decoded, once per content. Never raises for what the file contains."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for for ever
            return Probe(0, "", error="not a file")
        if (size := path.stat().st_size) > MAX_BYTES:
            return Probe(size, "", error=f"{size / 2**30:.0f} GiB, of which qray reads at most {MAX_BYTES // 2**30}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
            return _judge(path, file, file.tell(), digest)
    except FileNotFoundError:
        return Probe(0, "", error="file not found")
    except OSError as error:
        return Probe(0, "", error=f"cannot be read: {error.strerror}")


def _judge(path: Path, file: BinaryIO, size: int, digest: str) -> Probe:
    if size == 0:
        return Probe(0, digest, error="empty file")
    declared = declared_size(file)
    # Some AVI writers count a padding byte that they do not write.
    if declared is not None and declared > size + 1:
        return Probe(size, digest, error=f"truncated: its header says {declared} bytes, the file has {size}")
    n_frames, width, height = 0, 0, 0
    try:
        with open_video(path) as (container, stream):
            for frame in all_frames(container, stream):
                if n_frames == 0:
                    width, height = shown_size(stream, frame)
                turn_of(frame)
                n_frames += 1
            # A hint, no more: where it agrees with what was read, nothing can have been lost between the chunks.
            expected = stream.frames if container.format.name == "avi" else 0
            fps = float(stream.average_rate or 0)
    except ClipError as error:
        return Probe(size, digest, error=str(error))
    reason = None
    if n_frames == 0:
        reason = "no frames"
    elif n_frames != expected and (broken := broken_at(file)) is not None:
        reason = f"damaged: byte {broken} starts no part of a video; {n_frames} frames around it can be read"
    return Probe(size, digest, n_frames, width, height, fps, reason)
