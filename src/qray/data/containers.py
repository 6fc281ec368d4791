"""Where a video file says that it ends: decoders stop quietly at the end of a truncated file, the header does not."""

from __future__ import annotations

import os
from typing import BinaryIO

#: Boxes that stand at the top of MP4 and QuickTime files; anything else there is not theirs to judge by.
TOP_BOXES = frozenset(b"ftyp moov mdat free skip wide moof mfra sidx styp uuid meta pnot".split())
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def declared_size(file: BinaryIO) -> int | None:
    """Bytes that an AVI, MP4, QuickTime, Matroska or WebM file says it has; None where it does not say."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF":
        return _riff(file, size)
    if head[4:8] in TOP_BOXES:
        return _boxes(file, size)
    if head[:4] == EBML:
        return _segment(file)
    return None


def _riff(file: BinaryIO, size: int) -> int | None:
    """An AVI is one RIFF chunk, or several when it is larger than 1 GB; a writer that was killed leaves size 0."""
    end = 0
    while end + 8 <= size:
        file.seek(end)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or length in (0, 2**32 - 1):
            break
        end += 8 + length
    return end or None


def _boxes(file: BinaryIO, size: int) -> int | None:
    end = 0
    while end + 8 <= size:
        file.seek(end)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # a 64-bit length follows
            length = int.from_bytes(head[8:16], "big")
        if head[4:8] not in TOP_BOXES or length < 8:  # 0: up to the end of the file
            break
        end += length
    return end or None


def _vint(file: BinaryIO) -> int | None:
    """EBML's number of variable length: leading zeros count its bytes; all ones mean unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    bits = 7 * (more + 1)
    value = int.from_bytes(first + file.read(more), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value


def _segment(file: BinaryIO) -> int | None:
    file.seek(4)
    header = _vint(file)
    if header is None:
        return None
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != SEGMENT:
        return None
    length = _vint(file)
    return None if length is None else file.tell() + length
