"""One video file to the frames that a clip is made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from qray.study import ClipSpec

IndexArray = np.ndarray[tuple[int, int], np.dtype[np.int64]]


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


def single_threaded(stream: Any) -> None:
    """Decode on the calling thread: the cluster runs one decode task a core already."""
    stream.codec_context.thread_count = 1
    stream.codec_context.thread_type = "NONE"


def _wanted_frames(container: Any, stream: Any, wanted: set[int]) -> Iterator[tuple[int, Any]]:
    """(number, frame) of the wanted frames, numbered in presentation order."""
    last = max(wanted)
    if stream.codec_context.codec.intra_only:
        number = 0
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if number in wanted:
                frames = packet.decode()
                if len(frames) != 1:
                    raise ClipError(f"frame {number} cannot be decoded")
                yield number, frames[0]
            if number == last:
                return
            number += 1
        return
    for number, frame in enumerate(container.decode(stream)):
        if number in wanted:
            yield number, frame
        if number == last:
            return


def decode_frames(path: str | Path, indices: np.ndarray, image_size: int) -> np.ndarray:
    """Decode the frames `indices` (W, T) of a video into uint8 (W, T, S, S, 3), RGB, resized to `image_size`.

    Raises:
        ClipError: the file is missing, is not a video, or ends before the last wanted frame.
    """
    wanted = {int(i) for i in np.unique(indices)}
    resizer = VideoReformatter()
    pictures: dict[int, np.ndarray] = {}
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ClipError("no video stream")
            stream = container.streams.video[0]
            single_threaded(stream)
            for number, frame in _wanted_frames(container, stream, wanted):
                picture = resizer.reformat(frame, image_size, image_size, "rgb24", interpolation=Interpolation.AREA)
                pictures[number] = picture.to_ndarray()
    except FileNotFoundError:
        raise ClipError("file not found") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ClipError(f"cannot be decoded: {str(error).splitlines()[0][:120]}") from None
    missing = wanted - pictures.keys()
    if missing:
        raise ClipError(f"ends before frame {min(missing)}")
    flat = np.stack([pictures[int(i)] for i in indices.ravel()])
    return flat.reshape(*indices.shape, image_size, image_size, 3)
