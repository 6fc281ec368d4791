"""The plan of 64 trials and 16 variants on clusters of 2, 4 and 8 nodes of 4 CPUs, with work that waits.

Plan, runner, backend, store, recorder, sweep and Ray Tune are those of a run; only what would compute sleeps instead,
so that two cores can stand for 32. The FP32 weights are there when the clock starts: one training is one unit, whatever
the nodes. Latency and costs are left out: they are measured alone, one after the other, by design. The head is one of
the nodes, and the driver runs beside it.

Nodes on machines of their own would start processes with cores of their own. Here all share two: n times as many are
started at once, and each takes n times as long (6 trials on 2 nodes 8 s, 31 on 8 nodes over a minute). So what waits
takes the longer the more nodes there are, as if seen in slow motion.

One node would take as long as n nodes n times. What it takes at the least, if starting, telling and deciding took no
time, stands for it, so that the efficiency comes out too low, if anything.

Takes an hour and a quarter: pytest -s tests/benchmarks/test_scaling.py
"""

from __future__ import annotations

import heapq
import io
import os
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import ray
from ray import cloudpickle, tune
from ray.cluster_utils import Cluster
from rich.console import Console
from support.graphs import manifest_of, only, sweep_of

from qray.engines.artifact import Artifact, Built, write_artifact_json
from qray.graph.missing import lacking
from qray.graph.ray_backend import RayBackend
from qray.graph.runner import Runner
from qray.graph.session import Slots
from qray.graph.store import Files, Store, pack_folder
from qray.graph.unit import Graph, Unit
from qray.measure.isa import this_machine
from qray.model.epoch import EpochResult
from qray.point import Point
from qray.scratch import scratch_folder
from qray.study import Study, Training, Variant
from qray.units.build import build
from qray.units.clips import Job, SplitClips
from qray.units.context import RunContext
from qray.units.evaluate import evaluate
from qray.units.halving import standings
from qray.units.memory import memory
from qray.units.plan import ALONE, study_units, units_of_stage
from qray.units.recorder import Recorder, Sparing
from qray.units.sweep import SweepJob, sweep
from qray.units.train import train

cloudpickle.register_pickle_by_value(sys.modules[__name__])

LEAST_EFFICIENCY = 0.85
CPUS = 4
#: An epoch of a trial by the number of nodes. Tune begins a process for each rung of each trial.
EPOCH_S = {8: 320.0, 4: 80.0, 2: 40.0}
#: The others as a share of it. QAT takes twice the time of FP32; builds and evaluations of a network that is worth 64
#: trials take a part of an epoch.
FINETUNE_EPOCH, BUILD, EVALUATE, MEMORY = 1 / 2, 1 / 4, 1 / 4, 1 / 16
#: What one trial takes differs from what another does by so much.
SPREAD = 0.2
#: Every node reports of all its processes to the dashboard: eight nodes on two cores would do little else.
QUIET = {"enable_metrics_collection": False, "task_events_report_interval_ms": 0}
AGENTS = {"REPORTER_UPDATE_INTERVAL_MS": "60000"}
PTQ = [("inductor", "histogram"), ("inductor", "minmax"), ("onnxruntime", "minmax"), ("onnxruntime", "percentile"),
       ("openvino", "minmax"), ("openvino", "mse")]  # fmt: skip
STUDY: dict[str, Any] = {
    "name": "scaling",
    "clip": {"frames": 2, "image_size": 32},
    "variants": [
        *({"name": f"fp32-{engine}", "method": "fp32", "engine": engine} for engine in ("onnxruntime", "openvino")),
        {"name": "fp32", "method": "fp32", "engine": "eager"},
        {"name": "fp32-inductor", "method": "fp32", "engine": "inductor"},
        {"name": "dynamic", "method": "dynamic", "engine": "eager"},
        *({"name": f"ptq-{e}-{o}", "method": "ptq", "engine": e, "observer": o} for e, o in PTQ),
        {"name": "ptq-w4", "method": "ptq", "engine": "inductor", "weight_bits": 4},
        *({"name": f"qat-w{bits}", "method": "qat", "engine": "inductor", "weight_bits": bits} for bits in (8, 4)),
        *({"name": f"tuned-w{bits}", "method": "finetune", "engine": "eager", "weight_bits": bits} for bits in (8, 4)),
    ],
    "sweep": {"trials": 64, "epochs": [3], "lr": [1e-4, 2e-4, 3e-4, 4e-4], "reduction_factor": 3, "max_concurrent": 64},
    "measure": {"threads": [1], "batches": [1]},
}  # fmt: skip


def _share(trial: dict[str, Any]) -> float:
    """A number from 0 to 1 of a trial's own."""
    return int(trial["key"][:4], 16) / 0xFFFF


def epochs_of(trial: dict[str, Any]) -> float:
    """How many mean epochs an epoch of a trial takes."""
    return 1 + SPREAD * (2 * _share(trial) - 1)


class WaitingTrial(tune.Trainable):
    """In place of `tune.QatTrial`: an epoch is slept through. Its checkpoint says after which epoch it was made."""

    def setup(self, config: dict[str, Any], reached: dict[str, Any], mailbox: Any, **_: Any) -> None:
        self._trial, self._mailbox = config["trial"], mailbox
        key = self._trial["key"]
        self._epoch = int(bytes(ray.get(reached[key]))) if key in reached else 0

    def step(self) -> dict[str, Any]:
        trial, started = self._trial, time.time()
        time.sleep(trial["epoch_s"])
        self._epoch += 1
        val_mae = 3 + _share(trial)
        item = {
            "key": trial["keys"][self._epoch - 1], "trial": trial["key"], "settings": trial["settings"],
            "epoch": self._epoch, "status": "ok", "reason": None, "loss": 0.1, "val_mae": val_mae, "train_s": 1.0,
            "checkpoint": np.frombuffer(str(self._epoch).encode(), np.uint8), "qat": {}, "failed_clips": {},
            "started": started, "seconds": time.time() - started,
        }  # fmt: skip
        ray.get(self._mailbox.post.remote(item))
        return {"epoch": self._epoch, "val_mae": val_mae, "done": self._epoch == trial["until"]}


def waiting_sweep(
    epoch_s: float, job: SweepJob, due: list[dict[str, Any]], weights: bytes, train: Any, val: Any,
    reached: dict[str, Any], mailbox: Any,
) -> dict[str, Any]:  # fmt: skip
    import qray.units.tune

    with patch.object(qray.units.tune, "QatTrial", WaitingTrial):
        due = [trial | {"epoch_s": epoch_s * epochs_of(trial)} for trial in due]
        return {"failed": qray.units.tune.run_trials(job, due, weights, train, val, reached, mailbox)}


def waiting_train(
    epoch_s: float, job: Job, name: str, training: Training, clips: SplitClips, start: bytes, resume: None,
    freeze_at: float,
) -> Iterator[Any]:  # fmt: skip
    for epoch in range(training.epochs):
        time.sleep(FINETUNE_EPOCH * epoch_s)
        yield EpochResult(epoch, 0.1, 1.0, 1.0, len(clips.clips), b"weights")
    yield {"failed": {}, "device": "cpu", "losses": [0.1], "train_s": 1.0}


def waiting_build(
    epoch_s: float, job: Job, variant: Variant, key: str, isa: str, weights: bytes, clips: dict[str, SplitClips],
    qat: Any,
) -> dict[str, Any]:  # fmt: skip
    time.sleep(BUILD * epoch_s)
    with scratch_folder("build") as folder:
        (folder / key).mkdir()
        (folder / key / "model").write_bytes(bytes(8))
        write_artifact_json(Artifact(folder / key, variant, key, job.study.clip, isa, Built("model", 8, 1.0, 1), {}))
        return {"files": pack_folder(folder / key), "failed": {}, "build_s": BUILD * epoch_s}


def waiting_evaluate(
    epoch_s: float, job: Job, name: str, files: Files, split: str, clips: SplitClips
) -> dict[str, Any]:
    time.sleep(EVALUATE * epoch_s)
    target = clips.clips["target"].to_numpy()
    return {"predicted": target + np.random.default_rng(len(name)).normal(0, 2, len(target)), "failed": {}}


def waiting_memory(epoch_s: float, key: str, files: Files, at: Point) -> dict[str, Any]:
    time.sleep(MEMORY * epoch_s)
    return {"peak_rss_mb": 100.0}


WAITING = {sweep: waiting_sweep, train: waiting_train, build: waiting_build, evaluate: waiting_evaluate,
           memory: waiting_memory}  # fmt: skip


class WaitingBackend(RayBackend):
    """The same tasks on the same slots; they wait. epoch_s: how long for an epoch of a trial."""

    def __init__(self, epoch_s: float) -> None:
        super().__init__()
        self.epoch_s = epoch_s

    def submit(self, unit: Unit, work: Any, *arguments: Any, needs: Collection[str] = ()) -> Any:
        return super().submit(unit, WAITING[work], self.epoch_s, *arguments, needs=needs)


@contextmanager
def cluster_of(nodes: int) -> Iterator[None]:
    """A cluster, to which this process is attached."""
    # Raylets end what has not started in a minute, and start more in its place, which on two cores gets no better.
    config = {"worker_register_timeout_seconds": 900} | QUIET
    os.environ.update(AGENTS)
    head = {"num_cpus": CPUS, "include_dashboard": False, "_system_config": config}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=CPUS)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@dataclass(frozen=True)
class Measured:
    """Seconds that the plan took, and CPU seconds of the driver in it."""

    seconds: float
    driver_s: float


def planned(study: Study, out: Path) -> tuple[Store, Graph]:
    """OUT in which the FP32 weights are there."""
    store, graph = Store(out), study_units(study, CLIPS)
    for unit in graph:
        # Work that waits leaves nothing changed in its process, and a process more is what two cores have no time for.
        unit.task.resources = replace(unit.task.resources, processes="")
    weights = only(graph, "train")
    path = store.save_checkpoint(weights.key, 0, b"weights")
    store.put("train", weights.key, {"files": [store.relative(path)], "val_mae": {}})
    return store, graph


CLIPS = manifest_of({"TRAIN": 64, "VAL": 16, "TEST": 32})


def run_plan(study: Study, out: Path, epoch_s: float) -> Measured:
    """Run all of the plan but what is measured alone, as `units.run` does."""
    store, graph = planned(study, out)
    backend, said = WaitingBackend(epoch_s), io.StringIO()
    wanted = lacking(graph, [unit for unit in units_of_stage(graph, "all") if unit.kind not in ALONE], store)
    recorder = Recorder(store, study, graph, "all", time.time(), this_machine(), {})
    recording = Sparing(recorder.write)
    runner = Runner(store, backend, Console(file=said), recorder.results, recording.ask, recording.grant)
    run = runner.context = RunContext(study, CLIPS, store, backend, runner)  # type: ignore[arg-type]
    run.split("TEST")
    began, cpu = time.monotonic(), time.process_time()
    runner.run(wanted)
    measured = Measured(time.monotonic() - began, time.process_time() - cpu)
    assert {end.status for end in runner.results.values()} == {"ok"}, said.getvalue()
    (out / "log.txt").write_text(said.getvalue())
    return measured


def ideal(study: Study, out: Path, nodes: int) -> float:
    """Epochs of a trial that would take as long as the same plan on the same slots if starting, telling and deciding
    took none: what is on the longest way first, and as many trials at a time as the sweep may have."""
    graph = planned(study, out)[1]
    trials, slots = sweep_of(graph).trials, Slots(cpus=CPUS * nodes, gpus=0).holders
    settings, reached = [trial["settings"] for trial in trials], [0] * len(trials)
    # Chains of units (epochs of each) by what they wait for.
    after = {variant.name: [BUILD, EVALUATE, MEMORY] for variant in study.variants}
    ready = [after.pop(v.name) for v in study.variants if not v.of_sweep]
    now, running, rung = 0.0, list[tuple[float, int, Any]](), list[int]()
    in_sweep, swept, number = 0, False, 0
    while True:
        if not swept and not rung and not in_sweep:
            states = standings(settings, lambda i, e: 3 + _share(trials[i]) if reached[i] >= e else None, 3)
            rung = [i for i, standing in enumerate(states) if standing.state == "run"]
            goal = {i: states[i].epochs for i in rung}
            if not rung:
                swept = True
                for v in study.variants:
                    if v.name in after:
                        ready.insert(0, [FINETUNE_EPOCH * 3] * (v.method == "finetune") + after.pop(v.name))
        while len(running) < slots and ((rung and in_sweep < max(1, slots - 1)) or ready):
            number += 1
            if rung and in_sweep < max(1, slots - 1):
                i = rung.pop(0)
                heapq.heappush(running, (now + epochs_of(trials[i]) * (goal[i] - reached[i]), number, i))
                in_sweep += 1
            else:
                first, *rest = ready.pop(0)
                heapq.heappush(running, (now + first, number, rest))
        if not running:
            return now
        now, _, ended = heapq.heappop(running)
        if isinstance(ended, int):
            in_sweep -= 1
            reached[ended] = goal[ended]
        elif ended:
            ready.insert(0, ended)


def test_the_plan_of_64_trials_and_16_variants_scales_to_8_nodes(tmp_path: Path) -> None:
    study, one = Study.model_validate(STUDY), ideal(Study.model_validate(STUDY), tmp_path / "one", 1)
    assert len(study.variants) == 16
    efficiency = {}
    for nodes, epoch_s in EPOCH_S.items():
        with cluster_of(nodes):
            took = run_plan(study, tmp_path / f"{nodes}", epoch_s)
        least = epoch_s * ideal(study, tmp_path / "ideal", nodes)
        efficiency[nodes] = epoch_s * one / (nodes * took.seconds)
        print(
            f"\n{nodes} nodes, {Slots(CPUS * nodes, 0).holders} slots: {took.seconds:.1f} s, ideally {least:.1f} s on "
            f"these and {epoch_s * one:.1f} s on one: T(1) / (n T(n)) {efficiency[nodes]:.2f}; driver "
            f"{took.driver_s:.1f} CPU s", end="",
        )  # fmt: skip
    assert min(efficiency.values()) >= LEAST_EFFICIENCY
