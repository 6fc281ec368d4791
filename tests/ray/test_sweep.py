"""The sweep on Ray Tune: rung by rung, on from where a trial was cut, and the same as without the cut."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from runs import unit_times

from qray.data.manifest import Manifest, read_manifest
from qray.data.stream import put_clips
from qray.model.regressor import VideoRegressor
from qray.model.training import dump_checkpoint, load_checkpoint
from qray.orchestrate.clips import SplitClips
from qray.orchestrate.context import RunContext
from qray.orchestrate.placement import Placement
from qray.orchestrate.plan import make_plan
from qray.orchestrate.session import cluster_slots
from qray.orchestrate.steps import Result, Runner
from qray.orchestrate.store import Store
from qray.orchestrate.sweep_steps import sweep_steps, trial_standings
from qray.orchestrate.trial import SweepJob, train_qat
from qray.study import Study

STUDY: dict[str, Any] = {
    "name": "s",
    "clip": {"frames": 2, "image_size": 32, "stride": 2, "eval_windows": 1},
    "model": {"width": 4},
    "training": {"batch_size": 8},
    "variants": [
        {"name": "fp32", "method": "fp32", "engine": "eager"},
        {"name": "qat", "method": "qat", "engine": "inductor"},
    ],
    "sweep": {"trials": 3, "weight_bits": [8], "epochs": [2], "reduction_factor": 3, "max_concurrent": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def manifest(tiny_dataset: Path) -> Manifest:
    return read_manifest(tiny_dataset, Study.model_validate(STUDY).data)


@pytest.fixture(scope="module")
def weights() -> bytes:
    torch.manual_seed(0)
    return dump_checkpoint({"model": VideoRegressor(Study.model_validate(STUDY).model).state_dict()})


def study(reduction_factor: int) -> Study:
    return Study.model_validate(STUDY | {"sweep": STUDY["sweep"] | {"reduction_factor": reduction_factor}})


def sweep(out: Path, manifest: Manifest, weights: bytes, reduction_factor: int) -> RunContext:
    """Run the sweep of the study with a trained network in OUT."""
    store, plan = Store(out), make_plan(study(reduction_factor), manifest)
    store.save_checkpoint(plan.train, 0, weights)
    runner = Runner(store, Console(file=io.StringIO()))
    runner.results[plan.train] = Result("ok")
    run = RunContext(plan.study, store, plan, runner, cluster_slots(), Placement({}), None)
    for step in sweep_steps(run):
        runner.add(step)
    runner.run()
    assert runner.results[plan.sweep].status == "ok", runner.log
    return run


def states(run: RunContext) -> list[str]:
    return [standing.state for standing in trial_standings(run.store, run.plan)]


def test_another_reduction_factor_lets_a_cut_trial_run_on_and_repeats_nothing(
    manifest: Manifest, weights: bytes, shared_ray: None, tmp_path: Path
) -> None:
    strict = sweep(tmp_path, manifest, weights, 3)
    assert sorted(states(strict)) == ["cut", "cut", "whole"]
    before = unit_times(tmp_path)
    mild = sweep(tmp_path, manifest, weights, 2)
    assert sorted(states(mild)) == ["cut", "whole", "whole"]
    after = unit_times(tmp_path)
    assert before.items() <= after.items(), "a finished trial was trained again"
    (added,) = [name for name in after.keys() - before.keys() if name.startswith("trial")]
    went_on = next(t for t in mild.plan.trials if added == f"trial-{t['key']}.json")
    record = mild.store.get("trial", went_on["key"])
    assert record is not None
    assert record["epoch"] == 2
    # The same trial, never cut.
    given = {name: SplitClips(manifest.split(name), put_clips(manifest.split(name)), 0.0) for name in ("TRAIN", "VAL")}
    plan = mild.plan
    job = SweepJob(plan.study.model, plan.study.training, plan.study.clip, 0, 0.5, {}, 2, 60.0, "", None)
    threads = torch.get_num_threads()
    whole = list(train_qat("qat", went_on | {"until": 2}, job, weights, given["TRAIN"], given["VAL"]))
    torch.set_num_threads(threads)
    assert whole[-1]["val_mae"] == pytest.approx(record["val_mae"], rel=1e-6)
    kept = load_checkpoint(mild.store.latest_checkpoint(went_on["key"]) or b"")["model"]
    never_cut = load_checkpoint(whole[-1]["checkpoint"])["model"]
    assert kept.keys() == never_cut.keys()
    for name, value in kept.items():
        torch.testing.assert_close(value, never_cut[name], rtol=1e-4, atol=1e-5, msg=name)
