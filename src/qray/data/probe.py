"""What a file is, before anything relies on it: frames, size, rate, a digest of its bytes, or why it is no clip."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from qray.data.decode import ClipError, single_threaded

#: Containers whose header states a frame count that a complete file reaches exactly.
COUNTING_FORMATS = ("avi", "mov")


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


def _count_frames(container: Any, stream: Any) -> int:
    """Packets with data, one a frame in every codec PyAV demuxes; the first and the last frame are decoded as proof."""
    single_threaded(stream)
    packets = [p for p in container.demux(stream) if p.size]
    if not packets:
        raise ClipError("no frames")
    if any(p.is_corrupt for p in packets):
        raise ClipError(f"truncated: packet {next(i for i, p in enumerate(packets) if p.is_corrupt)} is incomplete")
    if stream.codec_context.codec.intra_only:
        proof = [packets[0], packets[-1]] if len(packets) > 1 else packets
        for packet in proof:
            if len(packet.decode()) != 1:
                raise ClipError("the first or last frame cannot be decoded")
        return len(packets)
    # Codecs that predict frames from others, and VP9/AV1 with hidden frames: only decoding tells how many are shown.
    shown = sum(len(packet.decode()) for packet in packets)
    shown += len(stream.codec_context.decode(None))
    return shown


def probe(path: Path) -> Probe:
    """Read a file once and judge it. Never raises for what the file contains."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Probe(0, "", error="file not found")
    except OSError as error:
        return Probe(0, "", error=f"cannot be read: {error.strerror}")
    digest = hashlib.blake2b(data, digest_size=8).hexdigest()
    size = len(data)
    if size == 0:
        return Probe(0, digest, error="empty file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return Probe(size, digest, error="no video stream")
            stream = container.streams.video[0]
            header = stream.frames if container.format.name.split(",")[0] in COUNTING_FORMATS else 0
            n_frames = _count_frames(container, stream)
            width, height = stream.codec_context.width, stream.codec_context.height
            fps = float(stream.average_rate or 0)
    except ClipError as error:
        return Probe(size, digest, error=str(error))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        return Probe(size, digest, error=f"not a readable video: {str(error).splitlines()[0][:120]}")
    if n_frames == 0:
        return Probe(size, digest, error="no frames")
    if n_frames < header:
        reason = f"truncated: its header says {header} frames, {n_frames} can be read"
        return Probe(size, digest, n_frames, width, height, fps, reason)
    if header == 0 and _riff_is_short(data):
        return Probe(size, digest, n_frames, width, height, fps, "truncated: the file is shorter than its header says")
    return Probe(size, digest, n_frames, width, height, fps)


def _riff_is_short(data: bytes) -> bool:
    """An AVI whose RIFF size goes past the end of the file."""
    return data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data) + 1
