"""Graphs of studies on clips that are nowhere, for what is decided before anything is run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from qray.data.manifest import Manifest, digest_of
from qray.graph.unit import Graph, Unit
from qray.units.sweep import Sweep


def manifest_of(counts: Mapping[str, int], folder: str = "") -> Manifest:
    """So many clips of each split, whose targets rise from 0 in steps of 1."""
    split = np.repeat(list(counts), list(counts.values()))
    names = [f"clip-{number}" for number in range(len(split))]
    clips = pd.DataFrame(
        {"clip": names, "path": [f"{folder}/{name}.avi" for name in names], "split": split,
         "target": np.arange(len(split), dtype=float),
         "content": [f"content of {name}" for name in names], "n_frames": 40 + np.arange(len(split))}
    )  # fmt: skip
    return Manifest(clips, pd.DataFrame(), digest_of(clips), {})


def only(graph: Graph, kind: str) -> Unit:
    """The only unit of a kind."""
    (unit,) = graph.of(kind).values()
    return unit


def sweep_of(graph: Graph) -> Sweep:
    """The task of the sweep."""
    task = only(graph, "sweep").task
    assert isinstance(task, Sweep)
    return task


def keys_of(graph: Graph) -> dict[str, str]:
    """The key of each unit by "kind name", also of whole trials; without those whose key depends on what is built."""
    found = {f"{unit.kind} {unit.name}": unit.key for unit in graph if not unit.settled}
    if graph.of("sweep"):
        found |= {f"trial {number}": trial["key"] for number, trial in enumerate(sweep_of(graph).trials)}
    return found
