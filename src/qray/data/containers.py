"""What a video file says of its own bytes: where it ends, and what lies in it one after the other.

Decoders stop quietly at the end of a truncated file, and skip what they cannot make sense of; frames that were lost so
look like a shorter video.
"""

from __future__ import annotations

import os
import re
from typing import BinaryIO

#: Boxes that stand at the top of MP4 and QuickTime files; anything else there is not theirs to judge by.
TOP_BOXES = frozenset(b"ftyp moov mdat free skip wide moof mfra sidx styp uuid meta pnot".split())
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
#: Bytes of a packet of an MPEG transport stream, and the first of each.
TS_PACKET, TS_SYNC = 188, b"G"
CLUSTER = b"\x1f\x43\xb6\x75"
#: Elements that stand in a Matroska segment, and in its clusters.
ELEMENTS = frozenset(
    bytes.fromhex(name)
    for name in (
        *("114d9b74", "1549a966", "1654ae6b", "1f43b675", "1c53bb6b", "1254c367", "1043a770", "1941a469"),
        *("ec", "bf", "e7", "5854", "a7", "ab", "a3", "a0", "af"),
    )
)
#: Chunks of an AVI: those of a stream (00dc, 01wb, ...), an index of one (ix00), and those that hold neither.
CHUNK = re.compile(rb"[0-9]{2}[0-9A-Za-z_]{2}|ix[0-9]{2}|LIST|RIFF|JUNK|idx1|INFO|PAD |_PMX|IDIT")


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


def broken_at(file: BinaryIO) -> int | None:
    """Where an AVI's chunks, a Matroska file's elements or a transport stream's packets stop following one another."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(TS_PACKET + 1)
    if head[:1] == head[-1:] == TS_SYNC and len(head) > TS_PACKET:
        return _broken_packet(file)
    head = head[:4]
    # Bytes behind the declared end are nobody's.
    if head == b"RIFF":
        return _broken_chunk(file, min(size, _riff(file, size) or size))
    return _broken_element(file, min(size, _segment(file) or size)) if head == EBML else None


def _broken_chunk(file: BinaryIO, end: int) -> int | None:
    at = 0
    while at + 8 <= end:
        file.seek(at)
        head = file.read(12)
        if not CHUNK.match(head):
            # Chunks start at even bytes; some writers leave the padding out.
            at -= 1
            file.seek(at)
            head = file.read(12)
            if not CHUNK.match(head):
                return at + 1
        # Frames stand in LIST movi, perhaps grouped in LIST rec; other lists are skipped as a whole.
        inside = head[:4] == b"RIFF" or (head[:4] == b"LIST" and head[8:12] in (b"movi", b"rec "))
        length = 4 if inside else int.from_bytes(head[4:8], "little")
        if at + 8 + length > end + 1:
            return at
        at += 8 + length + length % 2
    return None


def _broken_element(file: BinaryIO, end: int) -> int | None:
    file.seek(4)
    at = (_vint(file) or 0) + file.tell()
    while at < end:
        file.seek(at)
        first = file.read(1)
        name = first + file.read(8 - first[0].bit_length())
        length = _vint(file)
        if name in (SEGMENT, CLUSTER):  # frames are inside
            length = 0
        elif name not in ELEMENTS or length is None or file.tell() + length > end:
            return at
        at = file.tell() + length
    return None


def _broken_packet(file: BinaryIO) -> int | None:
    file.seek(0)
    at = 0
    while block := file.read(TS_PACKET * 4096):
        starts = block[::TS_PACKET]
        if starts.strip(TS_SYNC):
            return at + TS_PACKET * next(i for i, start in enumerate(starts) if start != TS_SYNC[0])
        at += len(block)
    return None
