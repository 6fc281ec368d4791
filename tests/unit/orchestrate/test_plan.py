"""Keys: the same for the same work anywhere, another one for everything that the work depends on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qray.data.manifest import Manifest, digest_of
from qray.orchestrate.plan import Plan, make_plan
from qray.orchestrate.store import CODE_VERSIONS, unit_key
from qray.study import Study

STUDY: dict[str, Any] = {
    "name": "s",
    "variants": [
        {"name": "fp32", "method": "fp32", "engine": "eager"},
        {"name": "ptq", "method": "ptq", "engine": "onnxruntime"},
        {"name": "qat", "method": "qat", "engine": "inductor"},
        {"name": "control", "method": "finetune", "engine": "eager"},
    ],
    "sweep": {"trials": 4},
}


def manifest(folder: str = "here", test: Sequence[str] = ("e", "f")) -> Manifest:
    splits = {"a": "TRAIN", "b": "TRAIN", "c": "TRAIN", "d": "VAL"} | dict.fromkeys(test, "TEST")
    clips = pd.DataFrame(
        {
            "clip": list(splits), "path": [f"/{folder}/{name}.avi" for name in splits],
            "target": np.arange(len(splits), dtype=float), "split": list(splits.values()),
            "content": [f"hash of {name}" for name in splits],
        }
    )  # fmt: skip
    return Manifest(clips, pd.DataFrame(), digest_of(clips), {})


def plan(of: Manifest | None = None, **changes: Any) -> Plan:
    return make_plan(Study.model_validate(STUDY | changes), of or manifest())


def changed(other: Plan) -> set[str]:
    """Names of the keys that differ from the plan of STUDY."""

    def keys(p: Plan) -> dict[str, Any]:
        builds = {f"build {name}": key for name, key in p.build.items()}
        evaluations = {f"evaluate {name}": key for name, key in p.evaluate.items()}
        trials = [trial["key"] for trial in p.trials]
        rest = {"train": p.train, "trials": trials, "sweep": p.sweep, "finetune": p.finetune[8]}
        return {**rest, **builds, **evaluations}

    mine, theirs = keys(plan()), keys(other)
    return {name for name in mine if mine[name] != theirs[name]}


EVALUATIONS = {f"evaluate {variant['name']}" for variant in STUDY["variants"]}
BUILDS = {f"build {variant['name']}" for variant in STUDY["variants"]}
ALL = {"train", "trials", "sweep", "finetune", *BUILDS, *EVALUATIONS}


def test_a_key_does_not_depend_on_the_order_of_what_it_is_made_of() -> None:
    assert unit_key("train", a=1, b={"x": 1, "y": 2}) == unit_key("train", b={"y": 2, "x": 1}, a=1)


def test_a_key_is_the_same_in_every_process() -> None:
    code = "from qray.orchestrate.store import unit_key; print(unit_key('train', a={'x': 0.1}, b=['é', None]))"
    keys = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert keys == {f"{unit_key('train', a={'x': 0.1}, b=['é', None])}\n".encode()}


def test_kinds_have_keys_of_their_own() -> None:
    assert len({unit_key(kind, a=1) for kind in CODE_VERSIONS}) == len(CODE_VERSIONS)


def test_a_new_code_version_of_a_kind_is_a_new_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = unit_key("build", a=1)
    monkeypatch.setitem(CODE_VERSIONS, "build", CODE_VERSIONS["build"] + 1)
    assert unit_key("build", a=1) != before


def test_what_cannot_be_named_the_same_everywhere_cannot_be_part_of_a_key() -> None:
    with pytest.raises(TypeError):
        unit_key("train", a=object())


def test_the_same_study_has_the_same_keys() -> None:
    assert changed(plan()) == set()


def test_the_folder_of_the_data_changes_no_key() -> None:
    assert changed(plan(manifest("elsewhere"), data={"dir": "elsewhere"})) == set()


def test_the_name_of_the_study_changes_no_key() -> None:
    assert changed(plan(name="other")) == set()


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": {"margin": 0.25}},
        {"verdict": {"bootstrap": 500, "seed": 3}},
        {"measure": {"threads": [1, 2], "seconds": 9}},
        {"evaluation": {"batch_size": 3}},
    ],
    ids=str,
)
def test_what_is_done_after_evaluation_changes_no_key_before_it(changes: dict[str, Any]) -> None:
    assert changed(plan(**changes)) == set()


def test_more_evaluation_windows_change_evaluations_alone() -> None:
    assert changed(plan(clip={"eval_windows": 5})) == EVALUATIONS


def test_other_test_clips_change_evaluations_alone() -> None:
    assert changed(plan(manifest(test=("e", "f", "g")))) == EVALUATIONS


def test_the_learning_rate_changes_everything() -> None:
    assert changed(plan(training={"lr": 1e-4})) == ALL


def test_other_training_clips_change_everything() -> None:
    other = manifest()
    other.clips.loc[0, "target"] = 99.0
    assert changed(plan(other)) == ALL


def test_the_seed_changes_everything() -> None:
    assert changed(plan(seed=1)) == ALL


def test_other_calibration_changes_the_int8_variants_alone() -> None:
    """QAT does not observe these clips, but its artifact records what it predicts of them."""
    wanted = {"build ptq", "evaluate ptq", "build qat", "evaluate qat"}
    assert changed(plan(calibration={"clips": 2})) == wanted


def test_other_trials_change_what_comes_out_of_the_sweep_alone() -> None:
    of_sweep = {"trials", "sweep", "finetune", "build qat", "build control", "evaluate qat", "evaluate control"}
    assert changed(plan(sweep={"trials": 4, "lr": [1e-5]})) == of_sweep


def test_how_many_trials_run_at_once_changes_no_key() -> None:
    assert changed(plan(sweep={"trials": 4, "max_concurrent": 1})) == set()


def test_a_variant_keeps_its_key_under_another_name() -> None:
    renamed = [v | {"name": v["name"].replace("ptq", "int8")} for v in STUDY["variants"]]
    assert plan(variants=renamed).evaluate["int8"] == plan().evaluate["ptq"]


def test_a_setting_of_a_variant_changes_that_variant_alone() -> None:
    other = [v | ({"observer": "minmax"} if v["name"] == "ptq" else {}) for v in STUDY["variants"]]
    assert changed(plan(variants=other)) == {"build ptq", "evaluate ptq"}


def test_calibration_clips_are_training_clips_drawn_by_the_seed() -> None:
    drawn = plan(calibration={"clips": 2}).calibration_clips()
    assert set(drawn["split"]) == {"TRAIN"}
    assert drawn.equals(plan(calibration={"clips": 2}).calibration_clips())


def test_calibration_takes_all_training_clips_when_there_are_fewer_than_wanted() -> None:
    assert len(plan(calibration={"clips": 64}).calibration_clips()) == 3
