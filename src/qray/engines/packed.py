"""Bytes of which those that hold 4-bit codes are stored two codes a byte. Light: an artifact is loaded with it."""

from __future__ import annotations

import struct

import numpy as np

#: Bytes that are packed together or not at all.
PAGE = 64
_LENGTH = struct.Struct("<Q")


def narrow(codes: np.ndarray) -> np.ndarray:
    """Which of int8 codes are of at most 4 bits."""
    return (codes >= -8) & (codes <= 7)


def pack(data: bytes) -> bytes:
    """`data` with its pages of 4-bit codes, int8 from -8 to 7, at half their size: its length, a bit for each page that
    says whether it is packed, the packed pages, the others. `unpack` gives the same bytes back."""
    pages = np.frombuffer(data + bytes(-len(data) % PAGE), np.int8).reshape(-1, PAGE)
    small = narrow(pages).all(1)
    codes = (pages[small] & 15).view(np.uint8)
    return b"".join([
        _LENGTH.pack(len(data)), np.packbits(small).tobytes(), (codes[:, ::2] | codes[:, 1::2] << 4).tobytes(),
        pages[~small].tobytes(),
    ])  # fmt: skip


def unpack(data: bytes) -> bytes:
    """What was packed.

    Raises:
        ValueError: the bytes are no such thing, or cut off.
    """
    (length,) = _LENGTH.unpack_from(data)
    count = -(-length // PAGE)
    # Before anything is made of a size that is only said.
    if len(data) < _LENGTH.size + -(-count // 8) + count * (PAGE // 2):
        raise ValueError("cut off")
    bits, rest = np.split(np.frombuffer(data, np.uint8, offset=_LENGTH.size), [-(-count // 8)])
    small = np.unpackbits(bits, count=count).astype(bool)
    codes, others = np.split(rest, [int(small.sum()) * PAGE // 2])
    pages = np.empty((count, PAGE), np.uint8)
    codes = codes.reshape(-1, PAGE // 2)
    # Shifted up and down again as signed numbers, codes get their sign back.
    pages[small, ::2], pages[small, 1::2] = ((half.view(np.int8) >> 4).view(np.uint8) for half in (codes << 4, codes))
    pages[~small] = others.reshape(-1, PAGE)
    return pages.tobytes()[:length]
