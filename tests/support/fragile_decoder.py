"""Body of a probing process whose decoder dies of the files called crash, and never ends with those called hang."""

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
    return probe(path)
