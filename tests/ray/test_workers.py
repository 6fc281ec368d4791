"""One model trained by several workers through Ray Train: what comes out, and what the loss of a worker costs."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from rich.console import Console
from support.graphs import only

from qray.data.manifest import Manifest, read_manifest
from qray.data.stream import put_clips
from qray.graph.placement import Placement
from qray.graph.ray_backend import RayBackend
from qray.graph.runner import Runner
from qray.graph.store import Store
from qray.model.epoch import EpochResult
from qray.model.training import load_checkpoint
from qray.study import Study
from qray.units import mailbox
from qray.units.clips import Job, SplitClips
from qray.units.context import RunContext
from qray.units.evaluate import predict_split
from qray.units.plan import study_units
from qray.units.train import train
from qray.units.work import model_from_state

EPOCHS = 4
STUDY: dict[str, Any] = {
    "name": "s",
    "clip": {"frames": 4, "image_size": 32, "stride": 2, "eval_windows": 1},
    "model": {"width": 4},
    "training": {"epochs": EPOCHS, "batch_size": 8, "precision": "fp32", "workers": 2},
    "evaluation": {"batch_timeout_s": 150},
    "variants": [{"name": "fp32", "method": "fp32", "engine": "eager"}],
}


def study(seed: int = 0, **training: Any) -> Study:
    return Study.model_validate(STUDY | {"seed": seed, "training": STUDY["training"] | training})


@pytest.fixture(scope="module")
def manifest(tiny_dataset: Path) -> Manifest:
    return read_manifest(tiny_dataset, study().data)


class Trained:
    """OUT of a training by two workers, its log and its record."""

    def __init__(self, out: Path, manifest: Manifest) -> None:
        settings = study()
        self.store, unit = Store(out), only(study_units(settings, manifest), "train")
        backend = RayBackend(Placement({}))
        runner = Runner(self.store, backend, Console(file=io.StringIO()))
        runner.context = RunContext(settings, manifest, self.store, backend, runner)
        runner.run([unit])
        self.log = "\n".join(runner.log)
        self.record = self.store.record(unit)
        assert self.record is not None, self.log
        found = self.store.latest_checkpoint(unit.key)
        assert found is not None
        self.checkpoint = found


def killer() -> type:
    """A mailbox that, when the first epoch arrives, kills the last of the workers: the first waits for its answer."""

    class Killer(mailbox.Mailbox):
        def post(self, item: Any) -> None:
            super().post(item)
            if isinstance(item, EpochResult) and item.epoch == 0:
                mine = psutil.Process().parent().children()  # type: ignore[union-attr]
                titles = {process: " ".join(process.cmdline()) for process in mine}
                workers = [process for process, title in titles.items() if "RayTrainWorker" in title]
                assert len(workers) == 2, titles
                os.kill(workers[-1].pid, signal.SIGKILL)

    return Killer


@pytest.fixture(scope="module")
def whole(manifest: Manifest, shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Of a training in which nothing happens."""
    return Trained(tmp_path_factory.mktemp("whole") / "out", manifest)


@pytest.fixture(scope="module")
def robbed(manifest: Manifest, shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Of a training that lost a worker after its first epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mailbox, "Mailbox", killer())
        yield Trained(tmp_path_factory.mktemp("robbed") / "out", manifest)


def predicted(checkpoint: np.ndarray, manifest: Manifest) -> np.ndarray:
    """VAL predictions of weights."""
    settings = study()
    network, val = model_from_state(settings.model, checkpoint), manifest.split("VAL")
    plan = Job(settings, 0.5, None).split_plan("VAL")

    def predict(clips: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(clips)).numpy()

    return predict_split(predict, SplitClips(val, put_clips(val), 0.0), plan, "VAL", "a test")[0]


def by_one(seed: int, manifest: Manifest) -> np.ndarray:
    """VAL predictions of a training by one worker."""
    settings, clips, threads = study(seed, workers=1), manifest.split("TRAIN"), torch.get_num_threads()
    job, given = Job(settings, 0.5, None), SplitClips(clips, put_clips(clips), 0.0)
    assert settings.training is not None
    *results, _ = train(job, f"seed {seed}", settings.training, given, None, None)
    torch.set_num_threads(threads)
    return predicted(results[-1].checkpoint, manifest)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The root mean square of their differences."""
    return float(np.sqrt(np.mean((one - other) ** 2)))


@pytest.mark.slow
def test_two_workers_train_the_model_that_one_trains_nearer_than_another_seed_does(
    whole: Trained, manifest: Manifest
) -> None:
    seeds = [by_one(seed, manifest) for seed in range(3)]
    spread = [apart(one, other) for one, other in itertools.combinations(seeds, 2)]
    assert apart(predicted(whole.checkpoint, manifest), seeds[0]) < min(spread), spread


@pytest.mark.slow
def test_every_epoch_is_of_all_clips_and_there_is_one_record_of_all_workers(whole: Trained, manifest: Manifest) -> None:
    assert [f"epoch {n + 1}/{EPOCHS}" in whole.log for n in range(EPOCHS)] == [True] * EPOCHS
    assert whole.record is not None
    assert len(whole.record["losses"]) == EPOCHS
    assert whole.record["failed_clips"] == {}
    assert {"node", "train_s", "device"} <= whole.record.keys()


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_the_epoch_in_flight_and_nothing_else(whole: Trained, robbed: Trained) -> None:
    assert robbed.log.count("is started again, since it lost workers") == 1
    assert "AssertionError" not in robbed.log, "the mailbox found nobody to kill"
    assert "goes on from its last checkpoint" in robbed.log
    assert [robbed.log.count(f"epoch {n + 1}/{EPOCHS}") for n in range(EPOCHS)] == [1] * EPOCHS
    mine, wanted = (load_checkpoint(trained.checkpoint)["model"] for trained in (robbed, whole))
    assert all(torch.equal(mine[name], wanted[name]) for name in wanted)


def test_workers_are_called_by_what_they_train(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

    from qray.units.together import _Named

    monkeypatch.setattr(WorkerGroup, "_worker_cls", WorkerGroup._worker_cls)
    pickle.loads(pickle.dumps(_Named("fp32")))
    assert repr(WorkerGroup._worker_cls()) == "worker:fp32"


@pytest.mark.slow
def test_ray_train_leaves_no_folder_behind(whole: Trained, robbed: Trained) -> None:
    assert not list(Path(tempfile.gettempdir()).glob("qray-train-*/files/fp32"))
    assert not (Path.home() / "ray_results" / "fp32").exists()
