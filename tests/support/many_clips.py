"""Lists of so many clips that nothing may be kept of each but what is needed, and what reading one takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from qray.data.manifest import read_manifest
from qray.data.probe import Probe
from qray.study import Data, Study
from qray.units.plan import study_units

STUDY: dict[str, Any] = {
    "name": "many",
    "variants": [
        {"name": "fp32", "method": "fp32", "engine": "eager"},
        {"name": "ptq", "method": "ptq", "engine": "openvino"},
        {"name": "qat", "method": "qat", "engine": "inductor"},
    ],
    "sweep": {"trials": 64},
}


def simulated(paths: Sequence[str], at_a_time: int) -> Iterator[tuple[str, Probe]]:
    """What reading each file would tell; each has a content of its own."""
    return ((path, Probe(1000, f"{number:016x}", 20, 32, 32, 50.0)) for number, path in enumerate(paths))


def peak_mb() -> float:
    """The most that this process had in memory, MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def planned(root: Path, found: Any) -> None:
    """Body of a process of its own, for its peak: seconds and MiB of reading the list and of planning."""
    began = time.perf_counter()
    with patch("qray.data.manifest.probe_files", simulated):
        manifest = read_manifest(root, Data())
    read = time.perf_counter()
    units = study_units(Study.model_validate(STUDY), manifest)
    found.put({"clips": len(manifest.clips), "units": len(list(units)), "read_s": read - began,
               "plan_s": time.perf_counter() - read, "peak_mb": peak_mb()})  # fmt: skip
