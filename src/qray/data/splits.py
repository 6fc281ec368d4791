"""Which side a row is on: as the list says, or drawn so that a row never moves and a group stays together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qray.data.video_folder import fold
from qray.study import Data
from qray.yaml_text import short

SPLITS = ("TRAIN", "VAL", "TEST")
SPLIT_WORDS = {
    "TRAIN": "TRAIN", "TRAINING": "TRAIN",
    "VAL": "VAL", "VALID": "VAL", "VALIDATION": "VAL", "DEV": "VAL",
    "TEST": "TEST", "TESTING": "TEST",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Side:
    """What a row says of its side. name: of its file, without the ending; split, group: its cells, "" where empty."""

    line: int
    name: str
    split: str
    group: str


def is_split(word: str) -> bool:
    """Whether a cell names a split, or none."""
    return not word or word.upper() in SPLIT_WORDS


def draw(name: str, data: Data) -> str:
    """A seeded draw that depends on a name alone, so that adding rows moves no other."""
    word = hashlib.blake2b(f"{data.split_seed}:{name}".encode(), digest_size=8).digest()
    share = int.from_bytes(word, "big") / 2**64
    edges = np.cumsum(data.split_fractions)
    return SPLITS[min(int(np.searchsorted(edges, share, side="right")), 2)]


def assign(sides: Sequence[Side], data: Data) -> list[tuple[str, str]]:
    """(split, "") for each row, or ("", reason): its group is given on two sides.

    A row without a split goes where its group was given one; else it is drawn, by its group or by its own name. Two
    files that share a name but for the ending are drawn together.
    """
    given: dict[str, dict[str, int]] = {}
    for side in sides:
        if side.group and side.split:
            given.setdefault(fold(side.group), {}).setdefault(SPLIT_WORDS[side.split.upper()], side.line)
    assigned = []
    for side in sides:
        own = given.get(fold(side.group), {}) if side.group else {}
        if len(own) > 1:
            places = " and ".join(f"{split} (line {line})" for split, line in own.items())
            reason = f"{data.group_column} {short(side.group)!r} is in {places}; a group must be on one side"
            assigned.append(("", reason))
        elif side.split:
            assigned.append((SPLIT_WORDS[side.split.upper()], ""))
        else:
            assigned.append((next(iter(own), None) or draw(fold(side.group) if side.group else side.name, data), ""))
    return assigned
