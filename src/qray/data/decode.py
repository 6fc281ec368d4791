"""One video file to the frames that a clip is made of."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from threading import local
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from qray.data.shown import turn_of, turned, without_fields
from qray.errors import ClipError as ClipError
from qray.study import ClipSpec

#: Formats that are lists of other files or addresses: a video of a data set must not lead out of its folder.
INDIRECT_FORMATS = {
    "applehttp", "concat", "concatf", "dash", "hls", "imf", "image2", "lavfi", "rtp", "rtsp", "sap", "sdp", "tty",
    "webm_dash_manifest",
}  # fmt: skip
DIRECT_FORMATS = ",".join(sorted(av.formats_available - INDIRECT_FORMATS))
#: What PyAV and FFmpeg raise for content that they cannot make sense of.
CONTENT_ERRORS = (av.error.FFmpegError, OSError, ValueError, ArithmeticError, MemoryError)
#: Without the last two, limited range comes out two grey levels darker than the same picture in full range.
RESIZING = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
DECODER_OPTIONS = {
    # Damage is an error rather than a frame that was made up around it.
    "err_detect": "explode",
    # A damaged header must not ask for gigabytes.
    "max_pixels": str(2**26),
}
#: Of all frames of a file together, as decoded: 4,000 of 3840 x 2160, or 9 minutes of 1920 x 1080. A small file may say
#: "the same again" of a large frame without end.
MOST_PIXELS = 2**35


class _Scaler(local):
    """A thread's own scaler, kept with its tables, which cost a sixth of the time of a small clip."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()


SCALER = _Scaler()


def _window(start: int, spec: ClipSpec) -> np.ndarray:
    return start + spec.stride * np.arange(spec.frames)


def _uniform(n_frames: int, spec: ClipSpec) -> np.ndarray:
    return np.linspace(0, n_frames - 1, spec.frames).round().astype(np.int64)


def _last_start(n_frames: int, spec: ClipSpec) -> int:
    return max(0, n_frames - 1 - spec.stride * (spec.frames - 1))


def training_indices(n_frames: int, spec: ClipSpec, rng: np.random.Generator) -> np.ndarray:
    """Frame numbers int64 (1, T): spread over the video, or a window at its start or at a random one. Short videos wrap
    round."""
    if spec.sampling == "uniform":
        return _uniform(n_frames, spec)[None]
    if spec.sampling == "first":
        return _window(0, spec)[None] % n_frames
    return _window(int(rng.integers(0, _last_start(n_frames, spec) + 1)), spec)[None] % n_frames


def evaluation_indices(n_frames: int, spec: ClipSpec) -> np.ndarray:
    """Frame numbers int64 (W, T): spread over the video, its first, or W windows at evenly spaced starts (one: in the
    middle)."""
    if spec.sampling == "uniform":
        return _uniform(n_frames, spec)[None]
    if spec.sampling == "first":
        return _window(0, spec)[None] % n_frames
    last = _last_start(n_frames, spec)
    starts = [last // 2] if spec.windows == 1 else np.linspace(0, last, spec.windows).round().astype(int)
    return np.stack([_window(int(start), spec) for start in starts]) % n_frames


def _in_a_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:120]


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """Yield (container, stream) of a file's video, set up to decode on the calling thread.

    Raises:
        ClipError: whatever is wrong with the file, here or while the caller reads from it.
    """
    try:
        # A pipe would be waited for, a device may have no end; what was a file when it was judged may be one by now.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ClipError("not a file")
        # "file:" because a name with a colon would be taken for an address.
        options = {"format_whitelist": DIRECT_FORMATS}
        with av.open(f"file:{path}", options=options, metadata_errors="replace") as container:
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


def _stored_packets(container: Any, stream: Any) -> Iterator[Any]:
    # Left before its end and not closed, PyAV's generator keeps its packet: 150 bytes a clip for good.
    with closing(container.demux(stream)) as packets:
        for number, packet in enumerate(packets):
            # Without data: the end of the stream, or "the last frame again", which decoders would take for the end.
            if packet.size == 0:
                continue
            if packet.is_corrupt:
                raise ClipError(f"truncated: packet {number} is incomplete")
            yield packet


def _packets(container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
    """(how many frames it is shown as, packet): 0 where an edit list cuts it off, else 1, but for dropped frames.

    An AVI has a chunk for each tick of its clock; where a recorder missed a frame the chunk is empty, which says "the
    last frame again". So frame n stays the picture at time n / fps, as a player shows it. FFmpeg leaves empty chunks
    out and counts them in the times. Other containers give each frame its time: there frame n is the n-th stored.
    """
    ticks = container.format.name == "avi"
    # An empty chunk is eight bytes long: times that leap further come from a damaged header.
    left = (container.size or 0) // 8
    before: Any = None
    for packet in _stored_packets(container, stream):
        if before is not None:
            again = packet.dts - before.dts - 1 if ticks and None not in (packet.dts, before.dts) else 0
            again = again if 0 <= again <= left else 0
            left -= again
            yield 0 if before.is_discard else 1 + again, before
        before = packet
    if before is not None:
        yield int(not before.is_discard), before


def _decode(stream: Any, packet: Any, number: int) -> list[Any]:
    """The frames that a packet completes, the first of which has this number."""
    try:
        frames: list[Any] = stream.codec_context.decode(packet)
    except CONTENT_ERRORS as error:
        raise ClipError(f"frame {number} or one near it cannot be decoded: {_in_a_line(error)}") from None
    for frame in frames:
        if frame.is_corrupt:
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


def _of_some_size(frames: Iterator[Any]) -> Iterator[Any]:
    pixels = 0
    for frame in frames:
        pixels += frame.width * frame.height
        if pixels > MOST_PIXELS:
            raise ClipError(f"its frames are more than {MOST_PIXELS / 1e9:.0f} gigapixels; cut it into clips")
        yield frame


def all_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Every frame in presentation order; the n-th is what `decode_frames` calls frame n."""
    by_itself = _each_by_itself(stream)
    shown_as: list[int] = []

    def decoded() -> Iterator[Any]:
        number = 0
        for shown, packet in _packets(container, stream):
            if shown:
                shown_as.append(shown)
            if not by_itself:
                for frame in _decode(stream, packet, number):
                    number += 1
                    yield frame
            elif shown:
                yield _one_frame(stream, packet, number)
                number += shown
        if not by_itself:
            yield from _decode(stream, None, number)

    for at, frame in enumerate(without_fields(_of_some_size(decoded()))):
        for _ in range(shown_as[at] if at < len(shown_as) else 1):
            yield frame


class _InterlacedError(Exception):
    """A frame cannot be had by itself, since its fields are told apart by its neighbours."""


def _frames_by_themselves(container: Any, stream: Any, wanted: set[int]) -> Iterator[tuple[int, Any]]:
    first, last = 0, max(wanted)
    for shown, packet in _packets(container, stream):
        numbers = [number for number in range(first, first + shown) if number in wanted]
        if numbers:
            frame = _one_frame(stream, packet, numbers[0])
            if frame.interlaced_frame:
                raise _InterlacedError
            yield from ((number, frame) for number in numbers)
        first += shown
        if first > last:
            return


def _pictures(path: str | Path, wanted: set[int], image_size: int, by_itself: bool) -> dict[int, np.ndarray]:
    """number -> picture of those wanted frames that the file has; by_itself: unwanted ones need not be decoded."""
    scale = SCALER.reformatter.reformat
    pictures: dict[int, np.ndarray] = {}
    with open_video(path) as (container, stream):
        # Frames predicted from others, and VP9's and AV1's hidden ones: only decoding tells which frame is the n-th.
        if by_itself and _each_by_itself(stream):
            frames = _frames_by_themselves(container, stream, wanted)
        else:
            frames = enumerate(islice(all_frames(container, stream), max(wanted) + 1))
        for number, frame in frames:
            if number in wanted:
                picture = scale(frame, image_size, image_size, "rgb24", interpolation=RESIZING, threads=1)
                pictures[number] = turned(picture.to_ndarray(), turn_of(frame))
    return pictures


def decode_frames(path: str | Path, indices: np.ndarray, image_size: int) -> np.ndarray:
    """Decode the frames `indices` (W, T) of a video into uint8 (W, T, S, S, 3), RGB, resized to `image_size`.

    Frames are as a player shows them (see `qray.data.shown`): turned as the file asks, without interlaced fields.

    Raises:
        ClipError: the file is missing, is not a video, is damaged, or ends before the last wanted frame.
    """
    wanted = {int(i) for i in np.unique(indices)}
    try:
        pictures = _pictures(path, wanted, image_size, by_itself=True)
    except _InterlacedError:
        pictures = _pictures(path, wanted, image_size, by_itself=False)
    missing = wanted - pictures.keys()
    if missing:
        raise ClipError(f"ends before frame {min(missing)}")
    flat = np.stack([pictures[int(i)] for i in indices.ravel()])
    return flat.reshape(*indices.shape, image_size, image_size, 3)
