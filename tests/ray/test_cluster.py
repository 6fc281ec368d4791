"""The same run on a cluster: a node with a (logical) GPU and CPU nodes."""

from __future__ import annotations

import contextlib
import os
import re
import urllib.request
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors, list_tasks
from support.runs import TINY, environment, free_port, results, start, units, wait_until

from qray.errors import Unavailable
from qray.graph.placement import QUIET, QUIET_ON_DEMAND, Placement, placement
from qray.measure.isa import ISA_FLAGS, native_isa

WANTED_METRICS = {
    "ray_qray_clips_per_second", "ray_qray_training_loss", "ray_qray_mae", "ray_qray_clips_total",
    "ray_qray_batches_ahead", "ray_qray_batch_wait_seconds_bucket", "ray_qray_idle_share", "ray_qray_units",
}  # fmt: skip

#: The labels of those that are looked for.
OURS = r'variant="(train:)?fp32"|stream="(train:fp32|evaluate fp32 TEST)"|kind="evaluate"'


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that runs nothing, a GPU node and a CPU node, all on this machine."""
    os.environ.pop("RAY_ADDRESS", None)
    head = {"num_cpus": 0, "dashboard_port": free_port(), "_system_config": {"metrics_report_interval_ms": 1000}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=2, num_gpus=1)
    # Enough for all that runs at once: what finds no room on it goes to the other.
    cluster.add_node(num_cpus=4)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def nodes(cluster: Cluster) -> dict[str, bool]:
    """Whether each node of the cluster has a GPU, by node id; this process is attached from here on."""
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    return {node["NodeID"]: node["Resources"].get("GPU", 0) > 0 for node in ray.nodes()}


@dataclass(frozen=True)
class OnCluster:
    """OUT of a run on the cluster, and the metrics that the nodes exported meanwhile."""

    out: Path
    metrics: set[str]


def exported() -> set[str]:
    """Metrics of FP32, of its streams and of evaluations that the nodes export now."""
    text = ""
    for node in ray.nodes():
        with contextlib.suppress(OSError):
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            text += urllib.request.urlopen(url, timeout=5).read().decode()
    return {line.partition("{")[0] for line in text.splitlines() if re.search(OURS, line)}


@pytest.fixture(scope="module")
def run_there(
    cluster: Cluster, nodes: dict[str, bool], tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> OnCluster:
    """A run on the cluster, with one trial."""
    out, metrics = tmp_path_factory.mktemp("cluster") / "out", set[str]()
    process = start("run", "evaluate", "--study", TINY, "--data", tiny_dataset, "--out", out,
                    "--set", "sweep.trials=1", env=environment(RAY_ADDRESS=cluster.address))  # fmt: skip

    def ended() -> bool:
        if not metrics >= WANTED_METRICS:
            metrics.update(exported())
        return process.poll() is not None

    try:
        wait_until(ended, "the end of a run on a cluster", every_s=2.0)
    finally:
        process.kill()
        _, words = process.communicate()
    assert process.returncode == 0, words
    return OnCluster(out, metrics)


@pytest.fixture
def on_cluster(run_there: OnCluster) -> Path:
    """OUT of a run on the cluster."""
    return run_there.out


def test_training_goes_to_the_gpu_node(on_cluster: Path, nodes: dict[str, bool]) -> None:
    trained = [unit["node"] for kind in ("train", "finetune") for unit in units(on_cluster, kind)]
    assert len(trained) == 2
    assert all(nodes[str(node)] for node in trained)


def test_int8_evaluation_goes_to_the_cpu_nodes(on_cluster: Path, nodes: dict[str, bool]) -> None:
    # The mean predictor's is the driver's own work.
    labels = {"evaluate mean-predictor"}
    evaluated = [unit["node"] for unit in units(on_cluster, "evaluate") if unit["label"] not in labels]
    assert len(evaluated) == 3
    assert not any(nodes[str(node)] for node in evaluated)


def test_every_task_and_actor_bears_its_variants_name(on_cluster: Path, nodes: dict[str, bool]) -> None:
    tasks = {task.name for task in list_tasks(limit=10_000, raise_on_missing_output=False)}
    wanted = {"train:fp32", "sweep:qat", "build:fp32", "build:ptq-onnxruntime", "evaluate:fp32",
              "evaluate:ptq-onnxruntime", "evaluate:finetune"}  # fmt: skip
    assert wanted <= tasks, sorted(tasks)
    wanted = {"mailbox:qat", "board"}
    actors = {actor.name for actor in list_actors(limit=10_000)}
    assert wanted <= actors, sorted(actors)
    shown = {actor.repr_name for actor in list_actors(limit=10_000, detail=True)}
    assert wanted <= shown, sorted(shown)
    trials = {trial for trial in results(on_cluster)["variant"] if trial.startswith("qat-w8-")}
    assert len(trials) == 1
    assert trials <= shown, sorted(shown)


def test_the_cluster_lives_on_after_the_run(on_cluster: Path, nodes: dict[str, bool]) -> None:
    assert sum(node["Alive"] for node in ray.nodes()) == 3


def test_work_goes_to_nodes_that_can_do_it_where_instruction_sets_differ(
    cluster: Cluster, nodes: dict[str, bool]
) -> None:
    """One more node, whose kernels are told to use less than this machine has."""
    lesser = cluster.add_node(num_cpus=8, env_vars={"ONEDNN_MAX_CPU_ISA": "SSE41"})
    try:
        mixed = placement()
        assert len(mixed.nodes) == 3
        assert mixed.machine().isa == "any" != native_isa()
        needed = ISA_FLAGS[native_isa()]
        chosen = {mixed.options(needed)["scheduling_strategy"].node_id for _ in range(6)}
        assert chosen == set(mixed.nodes) - {lesser.node_id}
        assert mixed.options(()) == {}
        # It has the most CPUs, so that what it can run would be measured there.
        assert measured_on(mixed, ()) == lesser.node_id
        assert measured_on(mixed, needed) != lesser.node_id
        with pytest.raises(Unavailable, match="no node of this cluster has made_up_isa"):
            mixed.options(["made_up_isa"])
    finally:
        cluster.remove_node(lesser)


def measured_on(nodes: Placement, needs: Collection[str]) -> str:
    """The node on which what needs this would be measured."""
    return str(nodes.alone(needs)["scheduling_strategy"].node_id)


def test_a_quiet_node_is_measured_on_and_runs_nothing_else(cluster: Cluster, nodes: dict[str, bool]) -> None:
    quiet = cluster.add_node(num_cpus=0, resources={QUIET: 1}, env_vars={"ONEDNN_MAX_CPU_ISA": "SSE41"})
    try:
        found = placement()
        assert set(found.quiet) == {quiet.node_id}
        # It is no reason to build for less than the nodes that work can do.
        assert found.machine().isa == native_isa()
        assert measured_on(found, ()) == quiet.node_id
        assert measured_on(found, ISA_FLAGS[native_isa()]) != quiet.node_id
        where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
        assert ray.get(where.options(**found.alone(())).remote(), timeout=60) == quiet.node_id
        # Two measurements do not run side by side there, nor anything that asks for a CPU.
        assert quiet.node_id not in ray.get([where.options(num_cpus=0.5).remote() for _ in range(20)], timeout=60)
    finally:
        cluster.remove_node(quiet)
    # Where it has gone and none will be started, another node serves.
    assert measured_on(found, ()) != quiet.node_id


def test_a_quiet_node_that_is_not_there_yet_is_asked_for(cluster: Cluster, nodes: dict[str, bool]) -> None:
    told = cluster.add_node(num_cpus=0, resources={QUIET_ON_DEMAND: 1})
    try:
        asked = placement().alone(())
        assert asked == {"num_cpus": 0, "resources": {QUIET: 1}}
        waiting = ray.remote(lambda: ray.get_runtime_context().get_node_id()).options(**asked).remote()
        started = cluster.add_node(num_cpus=0, resources={QUIET: 1})
        try:
            assert ray.get(waiting, timeout=60) == started.node_id
        finally:
            cluster.remove_node(started)
    finally:
        cluster.remove_node(told)


def test_progress_is_metrics_in_the_dashboard(run_there: OnCluster) -> None:
    assert run_there.metrics >= WANTED_METRICS
