"""When layers are measured, what makes them be measured again, and how they are shared out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qray.commands import run_stage
from qray.data.manifest import Manifest, digest_of
from qray.errors import UsageError
from qray.orchestrate.plan import Plan, make_plan
from qray.orchestrate.run import wanted_units
from qray.orchestrate.sensitivity import sensitivity_key, share_out, validation_clips
from qray.orchestrate.store import Store
from qray.study import Study

LAYERS = tuple(f"layer{i}" for i in range(29))


def plan(seed: int = 0, verdict: dict[str, Any] | None = None, val: int = 10, **sensitivity: Any) -> Plan:
    study = Study.model_validate({
        "name": "s", "seed": seed, "variants": [{"name": "fp32", "method": "fp32", "engine": "eager"}],
        "sensitivity": sensitivity or None, "verdict": verdict or {},
    })  # fmt: skip
    counts = {"TRAIN": 20, "VAL": val, "TEST": 5}
    rows = [(f"{split}-{i}", split, float(i)) for split, count in counts.items() for i in range(count)]
    clips = pd.DataFrame(rows, columns=["clip", "split", "target"])
    clips["content"] = "hash of " + clips["clip"]
    return make_plan(study, Manifest(clips, pd.DataFrame(), digest_of(clips), {}))


def test_a_study_without_the_section_measures_no_layers(tmp_path: Path) -> None:
    kinds = {kind for kind, _ in wanted_units(Store(tmp_path), plan(), "all")}
    assert "sensitivity" not in kinds


def test_a_study_with_the_section_measures_them_with_everything_else(tmp_path: Path) -> None:
    wanted = plan(clips=4)
    assert ("sensitivity", sensitivity_key(wanted)) in set(wanted_units(Store(tmp_path), wanted, "all"))


def test_the_stage_alone_needs_training_and_nothing_else(tmp_path: Path) -> None:
    assert [kind for kind, _ in wanted_units(Store(tmp_path), plan(clips=4), "sensitivity")] == ["train", "sensitivity"]


@pytest.mark.parametrize("changed", [
    {"clips": 5}, {"clips": 4, "weight_bits": 4}, {"clips": 4, "observer": "minmax"}, {"clips": 4, "seed": 1},
    {"clips": 4, "val": 11}, {"clips": 4, "verdict": {"bootstrap": 500}},
], ids=str)  # fmt: skip
def test_what_changes_the_record_changes_its_key(changed: dict[str, Any]) -> None:
    assert sensitivity_key(plan(**changed)) != sensitivity_key(plan(clips=4))


@pytest.mark.parametrize("changed", [{"tasks": 7}, {"verdict": {"margin": 2.0}}], ids=str)
def test_what_does_not_change_the_record_keeps_its_key(changed: dict[str, Any]) -> None:
    assert sensitivity_key(plan(clips=4, **changed)) == sensitivity_key(plan(clips=4))


@pytest.mark.parametrize("tasks", [1, 2, 4, 29, 50])
def test_every_layer_is_shared_out_once_and_in_order(tasks: int) -> None:
    parts = share_out(LAYERS, tasks)
    assert [name for part in parts for name in part] == list(LAYERS)
    assert len(parts) == min(tasks, 29)
    assert all(parts)


def test_only_validation_clips_are_drawn() -> None:
    clips = validation_clips(plan(clips=4), 4)
    assert len(clips) == 4
    assert set(clips["split"]) == {"VAL"}


def test_asking_for_more_clips_than_there_are_takes_all() -> None:
    assert len(validation_clips(plan(clips=64), 64)) == 10


def test_the_stage_of_a_study_without_the_section_says_what_to_add(tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no `sensitivity:` section.*--set sensitivity.clips=64"):
        run_stage("sensitivity", "quickstart", tiny_dataset, tmp_path / "out", ["sensitivity=null"], False, False, None)
