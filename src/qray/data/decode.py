"""One video file to the frames that a clip is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from qray.study import ClipSpec

#: Formats that are lists of other files or addresses: a video of a data set must not lead out of its folder.
INDIRECT_FORMATS = frozenset(
    [
        "applehttp",
        "concat",
        "concatf",
        "dash",
        "hls",
        "imf",
        "image2",
        "rtp",
        "rtsp",
        "sap",
        "sdp",
        "tty",
        "webm_dash_manifest",
        "lavfi",
    ]
)
#: What PyAV and FFmpeg raise for content that they cannot make sense of.
CONTENT_ERRORS = (av.error.FFmpegError, OSError, ValueError, ArithmeticError, MemoryError)
DECODER_OPTIONS = {
    # Damage is an error rather than a frame that was made up around it.
    "err_detect": "explode",
    # A damaged header must not ask for gigabytes.
    "max_pixels": str(2**26),
}


class ClipError(Exception):
    """A clip could not be decoded; the message is the reason, in a line."""


def _window(start: int, spec: ClipSpec) -> np.ndarray:
    return start + spec.stride * np.arange(spec.frames)


def _uniform(n_frames: int, spec: ClipSpec) -> np.ndarray:
    return np.linspace(0, n_frames - 1, spec.frames).round().astype(np.int64)


def _last_start(n_frames: int, spec: ClipSpec) -> int:
    return max(0, n_frames - 1 - spec.stride * (spec.frames - 1))


def training_indices(n_frames: int, spec: ClipSpec, rng: np.random.Generator) -> np.ndarray:
    """Frame numbers int64 (1, T): spread over the video, or a window at a random start. Short videos wrap round."""
    if spec.sampling == "uniform":
        return _uniform(n_frames, spec)[None]
    return _window(int(rng.integers(0, _last_start(n_frames, spec) + 1)), spec)[None] % n_frames


def evaluation_indices(n_frames: int, spec: ClipSpec) -> np.ndarray:
    """Frame numbers int64 (W, T): spread over the video, or W windows at evenly spaced starts (one: in the middle)."""
    if spec.sampling == "uniform":
        return _uniform(n_frames, spec)[None]
    last = _last_start(n_frames, spec)
    starts = [last // 2] if spec.windows == 1 else np.linspace(0, last, spec.windows).round().astype(int)
    return np.stack([_window(int(start), spec) for start in starts]) % n_frames


def _in_a_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:120]


@lru_cache(maxsize=1)
def _direct_formats() -> str:
    return ",".join(sorted(av.formats_available - INDIRECT_FORMATS))


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """Yield (container, stream) of a file's video, set up to decode on the calling thread.

    Raises:
        ClipError: whatever is wrong with the file, here or while the caller reads from it.
    """
    try:
        # "file:" because a name with a colon would be taken for an address.
        with av.open(
            f"file:{path}", options={"format_whitelist": _direct_formats()}, metadata_errors="replace"
        ) as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise ClipError("no video stream")
            context = streams[0].codec_context
            if context is None:
                raise ClipError("a codec that FFmpeg does not know")
            # The cluster runs one decode task a core already.
            context.thread_count, context.thread_type = 1, "NONE"
            context.options = DECODER_OPTIONS
            yield container, streams[0]
    except FileNotFoundError:
        raise ClipError("file not found") from None
    except CONTENT_ERRORS as error:
        raise ClipError(f"cannot be decoded: {_in_a_line(error)}") from None


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    for number, packet in enumerate(container.demux(stream)):
        # Without data: the end of the stream, or "the last frame again", which decoders would take for the end.
        if packet.size == 0:
            continue
        if packet.is_corrupt:
            raise ClipError(f"truncated: packet {number} is incomplete")
        yield packet


def _decode(stream: Any, packet: Any, number: int) -> list[Any]:
    """The frames that a packet completes, the first of which has this number."""
    try:
        frames: list[Any] = stream.codec_context.decode(packet)
    except CONTENT_ERRORS as error:
        raise ClipError(f"frame {number} or one near it cannot be decoded: {_in_a_line(error)}") from None
    if any(frame.is_corrupt for frame in frames):
        raise ClipError(f"frame {number} or one near it is damaged")
    return frames


def _one_frame(stream: Any, packet: Any, number: int) -> Any:
    frames = _decode(stream, packet, number)
    if len(frames) != 1:
        raise ClipError(f"frame {number} cannot be decoded: its packet holds {len(frames)} frames")
    return frames[0]


def _each_by_itself(stream: Any) -> bool:
    """Whether every packet is one frame, independent of the others, so that unwanted ones need no decoding."""
    return bool(stream.codec_context.codec.intra_only)


def all_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Every frame in presentation order; the n-th is what `decode_frames` calls frame n."""
    number = 0
    for packet in _packets(container, stream):
        if not _each_by_itself(stream):
            for frame in _decode(stream, packet, number):
                number += 1
                yield frame
        elif not packet.is_discard:
            yield _one_frame(stream, packet, number)
            number += 1
    if not _each_by_itself(stream):
        yield from _decode(stream, None, number)


def _wanted_frames(container: Any, stream: Any, wanted: set[int]) -> Iterator[tuple[int, Any]]:
    """(number, frame) of the wanted frames."""
    last = max(wanted)
    if _each_by_itself(stream):
        shown = (packet for packet in _packets(container, stream) if not packet.is_discard)
        for number, packet in enumerate(shown):
            if number in wanted:
                yield number, _one_frame(stream, packet, number)
            if number == last:
                return
        return
    # Frames predicted from others, and VP9's and AV1's hidden ones: only decoding tells which frame is the n-th.
    for number, frame in enumerate(all_frames(container, stream)):
        if number in wanted:
            yield number, frame
        if number == last:
            return


def decode_frames(path: str | Path, indices: np.ndarray, image_size: int) -> np.ndarray:
    """Decode the frames `indices` (W, T) of a video into uint8 (W, T, S, S, 3), RGB, resized to `image_size`.

    Raises:
        ClipError: the file is missing, is not a video, is damaged, or ends before the last wanted frame.
    """
    wanted = {int(i) for i in np.unique(indices)}
    resizer = VideoReformatter()
    pictures: dict[int, np.ndarray] = {}
    with open_video(path) as (container, stream):
        for number, frame in _wanted_frames(container, stream, wanted):
            picture = resizer.reformat(frame, image_size, image_size, "rgb24", interpolation=Interpolation.AREA)
            pictures[number] = picture.to_ndarray()
    missing = wanted - pictures.keys()
    if missing:
        raise ClipError(f"ends before frame {min(missing)}")
    flat = np.stack([pictures[int(i)] for i in indices.ravel()])
    return flat.reshape(*indices.shape, image_size, image_size, 3)
