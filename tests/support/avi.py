"""AVI files as recorders write them that FFmpeg does not: with empty chunks, without an index, with wrong counts."""

from __future__ import annotations

import struct
from collections.abc import Collection
from pathlib import Path


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk, padded to an even length."""
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def frames_of(content: bytes) -> list[tuple[int, bytes]]:
    """(place in the file, data) of each chunk of the first stream."""
    at, found = content.index(b"movi") + 4, []
    while content[at : at + 2] == b"00":
        length = struct.unpack_from("<I", content, at + 4)[0]
        found.append((at, content[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found


def drop_frames(path: Path, dropped: Collection[int], index: bool = True, count: int | None = None) -> Path:
    """Write an AVI of FFmpeg's anew: chunks of these numbers empty, with or without an index; its headers say count."""
    content = path.read_bytes()
    frames = [b"" if number in dropped else data for number, (_, data) in enumerate(frames_of(content))]
    header = bytearray(content[12 : content.index(b"movi") - 8])
    if count is not None:
        # avih: dwTotalFrames is the 5th number; strh: dwLength the 9th (after two names).
        struct.pack_into("<I", header, header.index(b"avih") + 8 + 16, count)
        struct.pack_into("<I", header, header.index(b"strh") + 8 + 32, count)
    movi, entries = b"movi", b""
    for data in frames:
        entries += b"00dc" + struct.pack("<III", 0x10, len(movi), len(data))
        movi += chunk(b"00dc", data)
    body = b"AVI " + bytes(header) + chunk(b"LIST", movi) + (chunk(b"idx1", entries) if index else b"")
    path.write_bytes(chunk(b"RIFF", body))
    return path
