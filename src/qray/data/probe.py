"""What a file is, before anything relies on it: frames, size, rate, a digest of its bytes, or why it is no clip."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from qray.data.containers import declared_size
from qray.data.decode import ClipError, all_frames, open_video


@dataclass(frozen=True)
class Probe:
    """Facts about one file. `error` is None for a good clip, else the reason in a line; then the rest may be 0."""

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
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
            size = file.tell()
            declared = declared_size(file)
    except FileNotFoundError:
        return Probe(0, "", error="file not found")
    except OSError as error:
        return Probe(0, "", error=f"cannot be read: {error.strerror}")
    if size == 0:
        return Probe(0, digest, error="empty file")
    # Some AVI writers count a padding byte that they do not write.
    if declared is not None and declared > size + 1:
        return Probe(size, digest, error=f"truncated: its header says {declared} bytes, the file has {size}")
    try:
        with open_video(path) as (container, stream):
            n_frames = sum(1 for _ in all_frames(container, stream))
            # Packets that are lost to garbage between them; other containers leave frames out on purpose (edit lists).
            expected = stream.frames if container.format.name == "avi" else 0
            width, height = stream.codec_context.width, stream.codec_context.height
            fps = float(stream.average_rate or 0)
    except ClipError as error:
        return Probe(size, digest, error=str(error))
    reason = None
    if n_frames == 0:
        reason = "no frames"
    elif n_frames < expected:
        reason = f"damaged: its header says {expected} frames, {n_frames} can be read"
    return Probe(size, digest, n_frames, width, height, fps, reason)
