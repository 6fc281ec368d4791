"""The sweep on Ray Tune: rung by rung, on from where a trial was cut, and the same as without the cut."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support.graphs import only, sweep_of
from support.runs import unit_times

from qray.data.manifest import Manifest, read_manifest
from qray.data.stream import put_clips
from qray.graph.placement import Placement
from qray.graph.ray_backend import RayBackend
from qray.graph.runner import Runner
from qray.graph.store import Store
from qray.graph.unit import Graph
from qray.model.regressor import VideoRegressor
from qray.model.training import dump_checkpoint, load_checkpoint
from qray.study import Study
from qray.units.clips import SplitClips
from qray.units.context import RunContext
from qray.units.plan import study_units
from qray.units.sweep import SweepJob
from qray.units.trial import train_qat

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


def planned(reduction_factor: int, manifest: Manifest) -> Graph:
    return study_units(study(reduction_factor), manifest)


def cut_in_three(out: Path, manifest: Manifest, weights: bytes) -> tuple[Store, list[dict[str, Any]]]:
    """OUT of a sweep with factor 3: one trial whole, two cut, of which the first has really been trained. And the
    records of that one as it would be had it never been cut."""
    store, graph = Store(out), planned(3, manifest)
    train_key, settings = only(graph, "train").key, study(3)
    store.save_checkpoint(train_key, 0, weights)
    store.put("train", train_key, {})
    cut, whole, other = sweep_of(graph).trials
    for trial, epochs, val_mae in ((whole, 2, 0.1), (other, 1, 1e6)):
        for key in trial["keys"][:epochs]:
            store.put("trial", key, {"key": key, "settings": trial["settings"], "status": "ok", "val_mae": val_mae})
    job = SweepJob(settings, 0.5, None, {}, 1, "")
    train, val = (SplitClips(clips, put_clips(clips), 0.0) for clips in map(manifest.split, ("TRAIN", "VAL")))
    threads = torch.get_num_threads()
    never_cut = list(train_qat("never cut", cut | {"until": 2}, job, weights, train, val))
    torch.set_num_threads(threads)
    first = {name: value for name, value in never_cut[0].items() if name != "checkpoint"}
    store.save_checkpoint(cut["key"], 0, never_cut[0]["checkpoint"])
    store.put("trial", cut["keys"][0], first)
    return store, never_cut


def states(store: Store, manifest: Manifest, reduction_factor: int) -> list[str]:
    return [s.state for s in sweep_of(planned(reduction_factor, manifest)).standings(store)]


@pytest.mark.slow
def test_another_reduction_factor_lets_a_cut_trial_run_on_and_repeats_nothing(
    manifest: Manifest, weights: bytes, shared_ray: None, tmp_path: Path
) -> None:
    store, never_cut = cut_in_three(tmp_path, manifest, weights)
    assert states(store, manifest, 3) == ["cut", "whole", "cut"]
    assert states(store, manifest, 2) == ["run", "whole", "cut"]
    before, graph = unit_times(tmp_path), planned(2, manifest)
    sweep, (trial, *_) = only(graph, "sweep"), sweep_of(graph).trials
    backend = RayBackend(Placement({}))
    runner = Runner(store, backend, Console(file=io.StringIO()))
    runner.context = RunContext(study(2), manifest, store, backend, runner)
    runner.run([sweep])
    assert runner.results[sweep.key].status == "ok", runner.log
    after = unit_times(tmp_path)
    assert before.items() <= after.items(), "a finished trial was trained again"
    assert after.keys() - before.keys() == {f"trial-{trial['key']}.json", f"sweep-{sweep.key}.json"}
    record = store.get("trial", trial["key"])
    assert record is not None
    assert (record["epoch"], record["val_mae"]) == (2, pytest.approx(never_cut[1]["val_mae"], rel=1e-4))
    assert record["train_s"] > never_cut[0]["train_s"]
    mine, wanted = (
        load_checkpoint(data)["model"] for data in (store.latest_checkpoint(trial["key"]), never_cut[1]["checkpoint"])
    )
    assert mine.keys() == wanted.keys()
    # An exported batch-norm counts the passes of evaluation too; nothing reads its counter.
    for name, value in ((n, v) for n, v in mine.items() if not n.endswith("num_batches_tracked")):
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-4, msg=name)
