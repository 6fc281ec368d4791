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
from support.graphs import keys_of, only, sweep_of

from qray.data.manifest import Manifest, digest_of
from qray.errors import UsageError
from qray.graph.unit import Graph, unit_key
from qray.measure.isa import Machine
from qray.study import Study
from qray.units.build import Build
from qray.units.clips import calibration_clips, covering
from qray.units.plan import study_units
from qray.units.train import Train

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


AVX2, VNNI = Machine("avx2", bf16=False), Machine("avx512-vnni", bf16=False)


def plan(of: Manifest | None = None, machine: Machine = AVX2, **changes: Any) -> Graph:
    return study_units(Study.model_validate(STUDY | changes), of or manifest(), machine)


def changed(other: Graph) -> set[str]:
    """Names of the keys that differ from the plan of STUDY; of what rows are made of."""

    def keys(graph: Graph) -> dict[str, Any]:
        found = keys_of(graph)
        trials = [key for name, key in found.items() if name.startswith("trial ")]
        kept = {name: key for name, key in found.items() if name.split()[0] in ("build", "evaluate")}
        kept.pop("evaluate mean-predictor")
        rest = {kind: only(graph, kind).key for kind in ("train", "sweep", "finetune")}
        return {**kept, **rest, "trials": trials}

    mine, theirs = keys(plan()), keys(other)
    return {name for name in mine if mine[name] != theirs[name]}


EVALUATIONS = {f"evaluate {variant['name']}" for variant in STUDY["variants"]}
BUILDS = {f"build {variant['name']}" for variant in STUDY["variants"]}
ALL = {"train", "trials", "sweep", "finetune", *BUILDS, *EVALUATIONS}


def test_a_key_does_not_depend_on_the_order_of_what_it_is_made_of() -> None:
    one, other = {"a": 1, "b": {"x": 1, "y": 2}}, {"b": {"y": 2, "x": 1}, "a": 1}
    assert unit_key("train", 1, one) == unit_key("train", 1, other)


def test_a_key_is_the_same_in_every_process() -> None:
    code = "from qray.graph.unit import unit_key; print(unit_key('train', 1, {'a': {'x': 0.1}, 'b': ['é', None]}))"
    keys = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert keys == {f"{unit_key('train', 1, {'a': {'x': 0.1}, 'b': ['é', None]})}\n".encode()}


def test_kinds_have_keys_of_their_own() -> None:
    assert unit_key("train", 1, {"a": 1}) != unit_key("build", 1, {"a": 1})


def test_a_new_version_of_a_task_is_a_new_key_of_its_kind_and_of_what_comes_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = keys_of(plan())
    monkeypatch.setattr(Build, "version", Build.version + 1)
    after = keys_of(plan())
    assert {name.split()[0] for name in before if before[name] != after[name]} == {"build", "evaluate", "memory"}
    assert before["evaluate mean-predictor"] == after["evaluate mean-predictor"]


def test_what_cannot_be_named_the_same_everywhere_cannot_be_part_of_a_key() -> None:
    with pytest.raises(TypeError):
        unit_key("train", 1, {"a": object()})


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


def test_other_calibration_changes_what_is_calibrated_alone() -> None:
    assert changed(plan(calibration={"clips": 2})) == {"build ptq", "evaluate ptq"}


def test_other_clips_of_the_parity_change_the_int8_variants_alone() -> None:
    """Their artifacts record what was predicted of these clips."""
    int8 = {"build ptq", "evaluate ptq", "build qat", "evaluate qat"}
    assert changed(plan(parity={"clips": 2})) == int8


def test_the_gate_of_the_parity_changes_no_key() -> None:
    assert changed(plan(parity={"max_kernel_share": 0.1})) == set()


#: What is trained, or compiled, or quantized for an instruction set, in a study whose INT8 needs half ranges on it.
OF_ISA = {"trials", "sweep", "finetune", "build ptq", "build qat", "build control"}
OF_ISA |= {"evaluate ptq", "evaluate qat", "evaluate control"}


def test_another_range_of_int8_changes_what_is_quantized_and_what_is_trained_for_it() -> None:
    assert changed(plan(machine=VNNI)) == OF_ISA


def test_a_named_target_is_the_same_as_the_machine_that_has_it() -> None:
    assert changed(plan(machine=VNNI, target={"isa": "avx2"})) == set()


def test_a_target_of_the_same_range_changes_no_training() -> None:
    """QAT for every CPU is QAT for AVX2; what is compiled, and where it was tried, is not the same."""
    assert changed(plan(target={"isa": "any"})) == {"build ptq", "evaluate ptq", "build qat", "evaluate qat"}


def test_qat_trains_with_the_range_that_is_shipped() -> None:
    mine, on_vnni = ([t["settings"] for t in sweep_of(of).trials] for of in (plan(), plan(machine=VNNI)))
    assert all(settings["reduce_range"] == (settings["weight_bits"] == 8) for settings in mine)
    assert not any(settings["reduce_range"] for settings in on_vnni)


def test_training_in_bf16_is_another_training() -> None:
    bf16 = Machine("avx2", bf16=True)
    assert changed(plan(machine=bf16)) == ALL
    assert changed(plan(machine=bf16, training={"precision": "fp32"})) == set()


def test_more_workers_than_clips_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^training.workers: 8 cannot share 3 TRAIN clips$"):
        plan(training={"workers": 8})


def test_one_worker_is_no_setting() -> None:
    assert not changed(plan(training={"workers": 1}))
    assert changed(plan(training={"batch_size": 12, "workers": 3})) == ALL
    assert changed(plan(training={"batch_size": 12})) == ALL


def test_a_gpu_decides_the_precision_itself() -> None:
    task = only(plan(machine=Machine("avx2", bf16=False, gpu=True)), "train").task
    assert isinstance(task, Train)
    assert task.training.precision == "auto"


def test_another_reduction_factor_changes_no_trial() -> None:
    """A trial's key is that of what it is after so many epochs, not of who lets it go on."""
    assert changed(plan(sweep={"trials": 4, "reduction_factor": 4})) == {
        "sweep", "finetune", "build qat", "build control", "evaluate qat", "evaluate control"
    }  # fmt: skip


def test_each_epoch_of_a_trial_has_a_key_of_its_own() -> None:
    trials = sweep_of(plan(sweep={"trials": 4, "epochs": [3]})).trials
    keys = [key for trial in trials for key in trial["keys"]]
    assert (len(keys), len(set(keys))) == (12, 12)
    assert all(trial["key"] == trial["keys"][2] for trial in trials)


def test_other_trials_change_what_comes_out_of_the_sweep_alone() -> None:
    of_sweep = {"trials", "sweep", "finetune", "build qat", "build control", "evaluate qat", "evaluate control"}
    assert changed(plan(sweep={"trials": 4, "lr": [1e-5]})) == of_sweep


def test_how_many_trials_run_at_once_changes_no_key() -> None:
    assert changed(plan(sweep={"trials": 4, "max_concurrent": 1})) == set()


def test_a_variant_keeps_its_key_under_another_name() -> None:
    renamed = [v | {"name": v["name"].replace("ptq", "int8")} for v in STUDY["variants"]]
    assert plan(variants=renamed).of("evaluate")["int8"].key == plan().of("evaluate")["ptq"].key


def test_a_setting_of_a_variant_changes_that_variant_alone() -> None:
    other = [v | ({"observer": "minmax"} if v["name"] == "ptq" else {}) for v in STUDY["variants"]]
    assert changed(plan(variants=other)) == {"build ptq", "evaluate ptq"}


def test_calibration_clips_are_training_clips_drawn_by_the_seed() -> None:
    study = Study.model_validate(STUDY | {"calibration": {"clips": 2}})
    drawn = calibration_clips(study, manifest())
    assert set(drawn["split"]) == {"TRAIN"}
    assert drawn.equals(calibration_clips(study, manifest()))


def of_targets(target: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"clip": [f"c{i}" for i in range(len(target))], "target": target})


def test_drawn_clips_cover_the_range_of_the_target() -> None:
    """Of 1000 normal targets, 128: both extremes, and more of the rare ones than a uniform draw has."""
    target = np.random.default_rng(0).normal(55, 12, 1000)
    drawn = covering(of_targets(target), 128, (0, 1))["target"]
    assert (drawn.min(), drawn.max()) == (target.min(), target.max())
    rare = np.abs(target - 55) > 24
    assert (np.abs(drawn - 55) > 24).sum() > 4 * rare.sum() * 128 / 1000
    assert len(drawn) == 128


def test_clips_of_one_target_are_drawn_all_the_same() -> None:
    assert covering(of_targets(np.full(20, 3.0)), 7, (0, 1))["clip"].nunique() == 7


def test_calibration_takes_all_training_clips_when_there_are_fewer_than_wanted() -> None:
    assert len(calibration_clips(Study.model_validate(STUDY | {"calibration": {"clips": 64}}), manifest())) == 3
