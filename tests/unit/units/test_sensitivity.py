"""When layers are measured, what makes them be measured again, and how they are shared out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.graphs import manifest_of, only

from qray.cli import app
from qray.errors import UsageError
from qray.graph.missing import lacking
from qray.graph.store import Store
from qray.graph.unit import Graph
from qray.study import Study
from qray.units.evaluate import BASELINE
from qray.units.plan import study_units, units_of_stage
from qray.units.sensitivity import share_of, validation_clips

LAYERS = tuple(f"layer{i}" for i in range(29))


def graph(seed: int = 0, verdict: dict[str, Any] | None = None, val: int = 10, **sensitivity: Any) -> Graph:
    return study_units(study(seed, verdict, **sensitivity), manifest_of({"TRAIN": 20, "VAL": val, "TEST": 5}))


def study(seed: int = 0, verdict: dict[str, Any] | None = None, **sensitivity: Any) -> Study:
    return Study.model_validate({
        "name": "s", "seed": seed, "variants": [{"name": "fp32", "method": "fp32", "engine": "eager"}],
        "sensitivity": sensitivity or None, "verdict": verdict or {},
    })  # fmt: skip


def wanted(of: Graph, stage: str, out: Path) -> list[str]:
    """Kinds of units that a stage runs in an empty OUT, without the mean predictor's."""
    return [unit.kind for unit in lacking(of, units_of_stage(of, stage), Store(out)) if unit.name != BASELINE]


def test_a_study_without_the_section_measures_no_layers(tmp_path: Path) -> None:
    assert not {"layers", "sensitivity"}.intersection(wanted(graph(), "all", tmp_path))


def test_a_study_with_the_section_measures_them_with_everything_else(tmp_path: Path) -> None:
    assert {"layers", "sensitivity"}.issubset(wanted(graph(clips=4), "all", tmp_path))


def test_the_stage_alone_needs_training_and_nothing_else(tmp_path: Path) -> None:
    assert wanted(graph(clips=4), "sensitivity", tmp_path) == ["train", "layers", "layers", "sensitivity"]


@pytest.mark.parametrize("changed", [
    {"clips": 5}, {"clips": 4, "weight_bits": 4}, {"clips": 4, "observer": "minmax"}, {"clips": 4, "seed": 1},
    {"clips": 4, "val": 11}, {"clips": 4, "verdict": {"bootstrap": 500}},
], ids=str)  # fmt: skip
def test_what_changes_the_record_changes_its_key(changed: dict[str, Any]) -> None:
    assert only(graph(**changed), "sensitivity").key != only(graph(clips=4), "sensitivity").key


@pytest.mark.parametrize("changed", [{"tasks": 7}, {"verdict": {"margin": 2.0}}], ids=str)
def test_what_does_not_change_the_record_keeps_its_key(changed: dict[str, Any]) -> None:
    assert only(graph(clips=4, **changed), "sensitivity").key == only(graph(clips=4), "sensitivity").key


@pytest.mark.parametrize("tasks", [1, 2, 4, 29, 50])
def test_every_layer_is_shared_out_once_and_in_order(tasks: int) -> None:
    parts = [share_of(LAYERS, part, tasks) for part in range(tasks)]
    assert [name for part in parts for name in part] == list(LAYERS)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_only_validation_clips_are_drawn() -> None:
    clips = validation_clips(study(), manifest_of({"TRAIN": 20, "VAL": 10, "TEST": 5}), 4)
    assert len(clips) == 4
    assert set(clips["split"]) == {"VAL"}


def test_asking_for_more_clips_than_there_are_takes_all() -> None:
    assert len(validation_clips(study(), manifest_of({"TRAIN": 20, "VAL": 10}), 64)) == 10


def test_the_stage_of_a_study_without_the_section_says_what_to_add(tiny_dataset: Path, tmp_path: Path) -> None:
    given = ["--data", str(tiny_dataset), "--out", str(tmp_path / "out"), "--set", "sensitivity=null"]
    with pytest.raises(UsageError, match=r"has no `sensitivity:` section.*--set sensitivity.clips=64"):
        app(["run", "sensitivity", *given], standalone_mode=False)
