"""Committed keys of every unit of the shipped studies, and the columns of the table: a change of one is a decision.

A key that changes does its work anew in every OUT there is. To accept one that is meant: `python
tests/golden/test_keys.py`, and say why in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from support.graphs import sweep_of

from qray.data.manifest import Manifest, digest_of
from qray.judge.row import RESULTS
from qray.measure.isa import Machine
from qray.study_files import load_study
from qray.units.plan import study_units

GOLDEN = Path(__file__).with_name("keys.json")
STUDIES = ("quickstart", "echonet", "report")
MACHINE = Machine("avx2", bf16=False)


def fixed_manifest() -> Manifest:
    """Sixty clips that are nowhere, 40 TRAIN, 8 VAL and 12 TEST."""
    split = np.repeat(["TRAIN", "VAL", "TEST"], (40, 8, 12))
    names = [f"clip-{number:02d}" for number in range(len(split))]
    clips = pd.DataFrame(
        {"clip": names, "path": [f"/{name}.avi" for name in names], "target": 20.0 + np.arange(len(split)),
         "split": split, "content": [f"content of {name}" for name in names], "n_frames": 40}
    )  # fmt: skip
    return Manifest(clips, pd.DataFrame(), digest_of(clips), {})


def keys(name: str) -> dict[str, Any]:
    """Key of each unit of a study, by kind and what it is of."""
    graph = study_units(load_study(name), fixed_manifest(), MACHINE)
    found: dict[str, Any] = {}
    for unit in graph:
        if not unit.settled:
            found.setdefault(unit.kind, {})[unit.name] = unit.key
    return found | {"trial": [trial["keys"] for trial in sweep_of(graph).trials] if graph.of("sweep") else []}


def golden() -> dict[str, Any]:
    """What is committed, as it is now."""
    columns = {field.name: str(field.type) for field in RESULTS}
    return {"keys": {name: keys(name) for name in STUDIES}, "columns": columns}


def test_keys_and_columns_are_those_that_were_committed() -> None:
    assert golden() == json.loads(GOLDEN.read_text(encoding="utf-8"))


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n", encoding="utf-8")
