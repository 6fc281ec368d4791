"""From a decoded frame to what a player shows: without fields, turned as the file asks, and of the size it is seen at.

Colours need nothing here: FFmpeg's scaler reads range and matrix (BT.601, BT.709, ...) from each frame, and takes a
frame without them for BT.601 of limited range, which is what its own tools do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type

from qray.errors import ClipError

#: A display matrix may be off by this share of its largest entry, about one degree, and still be a quarter turn.
TURN_TOLERANCE = 0.02


def turn_of(frame: Any) -> np.ndarray | None:
    """How a frame is turned before it is shown, as int64 [[a, b], [c, d]] of -1, 0 and 1; None for not at all.

    The pixel in column p, row q is shown in column a p + c q, row b p + d q, as in FFmpeg's libavutil/display.h.

    Raises:
        ClipError: the file asks for anything but quarter turns and mirror images.
    """
    side_data = next((data for data in frame.side_data if data.type == Type.DISPLAYMATRIX), None)
    if side_data is None:
        return None
    matrix = np.frombuffer(bytes(side_data), np.int32).reshape(3, 3)
    linear = matrix[:2, :2] / max(1, int(np.abs(matrix[:2, :2].astype(np.int64)).max()))
    turn = np.where(np.abs(linear) > TURN_TOLERANCE, np.sign(linear), 0).astype(np.int64)
    # Entries of unlike size stretch the picture, which pixels that are not square do as well: see `shown_size`.
    if matrix[:2, 2].any() or (np.abs(turn).sum(0) != 1).any() or (np.abs(turn).sum(1) != 1).any():
        rows = ", ".join(f"[{row[0] / 65536:g} {row[1] / 65536:g}]" for row in matrix[:2])
        raise ClipError(f"its display matrix {rows} is no quarter turn or mirror image; store the frames upright")
    return None if (turn == np.eye(2)).all() else turn


def turned(picture: np.ndarray, turn: np.ndarray | None) -> np.ndarray:
    """A picture (H, W, C) as it is shown, by what `turn_of` says."""
    if turn is None:
        return picture
    if turn[0, 0] == 0:
        picture = picture.swapaxes(0, 1)
    rows, columns = turn[:, 1].sum(), turn[:, 0].sum()
    return picture[::rows, ::columns]


def shown_size(stream: Any, frame: Any) -> tuple[int, int]:
    """(width, height) in square pixels at which a frame is shown: wide pixels add columns, then it is turned.

    A clip is the whole picture resized to a square, so the shape of the pixels changes nothing in it.
    """
    aspect = stream.sample_aspect_ratio or 1
    width, height = max(1, round(frame.width * aspect)), frame.height
    turn = turn_of(frame)
    return (height, width) if turn is not None and turn[0, 0] == 0 else (width, height)


def without_fields(frames: Iterator[Any]) -> Iterator[Any]:
    """The same number of frames, those that are interlaced with one moment in each in place of two.

    bwdif keeps what stands still as it is stored and interpolates what moves; the moment is that of the first field.
    """
    graph: Graph | None = None
    form: tuple[Any, ...] = ()
    for frame in frames:
        if graph is not None and form != _form(frame):
            yield from _flushed(graph)
            graph = None
        if graph is None:
            if not frame.interlaced_frame:
                yield frame
                continue
            graph, form = _bwdif(frame), _form(frame)
        graph.vpush(frame)
        yield from _pulled(graph)
    if graph is not None:
        yield from _flushed(graph)


def _form(frame: Any) -> tuple[Any, ...]:
    return frame.width, frame.height, frame.format.name, frame.color_range, frame.colorspace


def _bwdif(frame: Any) -> Graph:
    graph = Graph()
    graph.threads = 1
    # Not `add_buffer`, which leaves out range and matrix: the filter would hand on frames without them.
    source = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base=str(frame.time_base or "1/1000"),
        range=str(int(frame.color_range)),
        colorspace=str(int(frame.colorspace)),
    )
    deinterlacer = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    graph.link_nodes(source, deinterlacer, graph.add("buffersink")).configure()
    return graph


def _pulled(graph: Graph) -> Iterator[Any]:
    while True:
        try:
            yield graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def _flushed(graph: Graph) -> Iterator[Any]:
    graph.vpush(None)
    yield from _pulled(graph)
