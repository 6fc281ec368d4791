"""Body of a probing process whose decoder dies of the files called crash, never ends with those called hang, and raises
what nobody has heard of for those called odd."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

from qray.data import probing
from qray.data.probe import Probe, probe


def answer_all() -> None:
    """As `probing.answer_all`."""
    probing.probe = fragile
    probing.answer_all()


def fragile(path: Path) -> Probe:
    if "crash" in path.name:
        ctypes.string_at(0)
    if "hang" in path.name:
        time.sleep(1000)
    if "odd" in path.name:
        raise KeyError(path.name)
    return probe(path)
