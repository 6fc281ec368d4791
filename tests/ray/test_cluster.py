"""The same run on a cluster that begins with its head: a node with a (logical) GPU and a CPU node come on demand."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import urllib.request
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors, list_tasks
from support.monitoring import Prometheus, expressions, metrics_of, running_prometheus
from support.runs import TINY, environment, free_port, results, start, units, wait_until

from qray.errors import NotYet
from qray.graph.placement import (
    CPUS_ON_DEMAND,
    GPUS_ON_DEMAND,
    QUIET,
    QUIET_ON_DEMAND,
    Placement,
    on_node,
    placement,
)  # fmt: skip
from qray.measure.isa import ISA_FLAGS, native_isa

WANTED_METRICS = {
    "ray_qray_clips_per_second", "ray_qray_training_loss", "ray_qray_mae", "ray_qray_clips_total",
    "ray_qray_batches_ahead", "ray_qray_batch_wait_seconds_bucket", "ray_qray_idle_share", "ray_qray_units",
}  # fmt: skip

#: The labels of those that are looked for.
OURS = r'variant="fp32"|stream="(train fp32|evaluate fp32 TEST)"|kind="evaluate"'
#: What only a machine with a GPU has.
OF_GPUS = "ray_node_gpus_utilization"


#: The CPU node has enough for all that runs at once: what finds no room on it goes to the other.
GPU_NODE, CPU_NODE = {"num_cpus": 2, "num_gpus": 1}, {"num_cpus": 4}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that runs nothing, on this machine, which says what may come; this process is attached from here on."""
    os.environ.pop("RAY_ADDRESS", None)
    head = {"num_cpus": 0, "dashboard_port": free_port(), "resources": {CPUS_ON_DEMAND: 6, GPUS_ON_DEMAND: 1},
            "_system_config": {"metrics_report_interval_ms": 1000}}  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def waiting() -> list[dict[str, float]]:
    """What those tasks ask for that no node has room for."""
    states = list_tasks(filters=[("state", "=", "PENDING_NODE_ASSIGNMENT")], detail=True, limit=10_000)
    return [task.required_resources or {} for task in states]


def start_what_is_asked_for(cluster: Cluster) -> None:
    """Do what an autoscaler does: start a GPU node where a task waits for a GPU, the CPU node where any waits."""
    asked = waiting()
    if any("GPU" in each for each in asked) and not ray.cluster_resources().get("GPU"):
        cluster.add_node(**GPU_NODE)
    elif any("GPU" not in each for each in asked) and ray.cluster_resources().get("CPU", 0) < 4:
        cluster.add_node(**CPU_NODE)


@dataclass(frozen=True)
class OnCluster:
    """OUT of a run on the cluster, when it began, what it said, and the metrics that the nodes exported meanwhile."""

    out: Path
    began: float
    said: str
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
def monitor(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus | None]:
    """Prometheus, which asks the cluster from before the run on."""
    found = Path(cluster.head_node.get_session_dir_path()) / "prom_metrics_service_discovery.json"
    with running_prometheus(found, tmp_path_factory.mktemp("prometheus")) as prometheus:
        yield prometheus


@pytest.fixture(scope="module")
def run_there(
    cluster: Cluster, monitor: Prometheus | None, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> OnCluster:
    """A run on the cluster, with one trial, whose nodes come when it asks for them."""
    out, metrics, began = tmp_path_factory.mktemp("cluster") / "out", set[str](), time.time()
    process = start("run", "evaluate", "--study", TINY, "--data", tiny_dataset, "--out", out,
                    "--set", "sweep.trials=1", env=environment(RAY_ADDRESS=cluster.address))  # fmt: skip

    def ended() -> bool:
        start_what_is_asked_for(cluster)
        if not metrics >= WANTED_METRICS:
            metrics.update(exported())
        return process.poll() is not None

    try:
        wait_until(ended, "the end of a run on a cluster", every_s=2.0)
    finally:
        process.kill()
        _, words = process.communicate()
    assert process.returncode == 0, words
    return OnCluster(out, began, words, metrics)


@pytest.fixture(scope="module")
def nodes(cluster: Cluster, run_there: OnCluster) -> dict[str, bool]:
    """Whether each node of the cluster has a GPU, by node id."""
    return {node["NodeID"]: node["Resources"].get("GPU", 0) > 0 for node in ray.nodes()}


@pytest.fixture
def on_cluster(run_there: OnCluster) -> Path:
    """OUT of a run on the cluster."""
    return run_there.out


def test_nodes_come_when_work_asks_for_them(run_there: OnCluster, nodes: dict[str, bool]) -> None:
    assert "no node of the cluster has a CPU yet, so one is asked for" in run_there.said
    assert sorted(nodes.values()) == [False, False, True]


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
    (trial,) = (name for name in results(on_cluster)["variant"] if name.startswith("qat-w8-"))
    decoded = {f"ReadClipNumbers->MapBatches(decode {stream})" for stream in
               ("VAL", "TEST", "train fp32", f"train {trial}", "calibration of ptq-onnxruntime")}  # fmt: skip
    wanted = {"train:fp32", "sweep:qat", "build:fp32", "build:ptq-onnxruntime", "evaluate:fp32",
              "evaluate:ptq-onnxruntime", "evaluate:finetune", f"{trial}.train"}  # fmt: skip
    assert wanted | decoded <= tasks, sorted(tasks)
    wanted = {"mailbox:qat", "board"}
    actors = list_actors(limit=10_000, detail=True)
    assert wanted <= {actor.name for actor in actors}, actors
    assert {*wanted, trial} <= {actor.repr_name for actor in actors}, actors
    classes = {actor.class_name for actor in actors}
    assert "QatTrial" in classes
    # Of Ray's own making are names of classes within functions, and of objects without any.
    assert not [name for name in tasks | classes if "<" in name or "0x" in name]


def test_every_data_set_bears_its_streams_name_and_no_time(on_cluster: Path, cluster: Cluster) -> None:
    (trial,) = (name for name in results(on_cluster)["variant"] if name.startswith("qat-w8-"))
    text = ""
    for job in ask(cluster, "/api/jobs/"):
        text += " ".join(found["dataset"] for found in ask(cluster, f"/api/data/datasets/{job['job_id']}")["datasets"])
    wanted = {"VAL", "TEST", "train-fp32", "validate-fp32", f"train-{trial}", f"validate-{trial}", "train-finetune-w8",
              "calibration-of-ptq-onnxruntime", "evaluate-fp32-TEST", "evaluate-ptq-onnxruntime-TEST"}  # fmt: skip
    # After a name comes Ray's number of the job, or of a data set that is kept decoded.
    assert wanted <= {re.sub(r"_([0-9a-f]{8}|\d{1,4})_0$", "", name) for name in text.split()}, text


def ask(cluster: Cluster, path: str) -> Any:
    """What the dashboard answers."""
    with urllib.request.urlopen(f"http://{cluster.head_node.webui_url}{path}", timeout=30) as answer:
        return json.load(answer)


def test_what_is_for_a_gpu_goes_to_the_node_that_has_one(cluster: Cluster, nodes: dict[str, bool]) -> None:
    found = placement()
    where = ray.remote(lambda: (ray.get_runtime_context().get_node_id(), len(ray.get_gpu_ids())))
    for options in ({"num_cpus": 0.5, "num_gpus": 1} | found.options((), gpu=True), found.alone((), gpu=True)):
        node, gpus = ray.get(where.options(**options).remote(), timeout=60)
        assert (nodes[node], gpus) == (True, 1)
    assert not nodes[measured_on(found, ())]


def test_the_cluster_lives_on_after_the_run(on_cluster: Path, nodes: dict[str, bool]) -> None:
    assert sum(node["Alive"] for node in ray.nodes()) == 3


def test_work_goes_to_nodes_that_can_do_it_where_instruction_sets_differ(
    cluster: Cluster, nodes: dict[str, bool]
) -> None:
    """One more node, whose kernels are told to use less than this machine has."""
    mixed = placement()
    assert len(mixed.nodes) == 2
    lesser = cluster.add_node(num_cpus=8, env_vars={"ONEDNN_MAX_CPU_ISA": "SSE41"})
    try:
        # It has not said yet what it can do, and gets nothing that needs anything.
        wait_until(lambda: known(mixed) == 3 or lesser.node_id in mixed.nodes, "a node that joins", 60)
        wait_until(lambda: known(mixed) == 3, "what a node can do that joined", 60)
        assert mixed.machine().isa == "any" != native_isa()
        needed = ISA_FLAGS[native_isa()]
        chosen = {mixed.options(needed)["scheduling_strategy"].node_id for _ in range(6)}
        assert chosen == set(mixed.nodes) - {lesser.node_id}
        assert mixed.options(()) == {}
        # It has the most CPUs, so that what it can run would be measured there.
        assert measured_on(mixed, ()) == lesser.node_id
        assert measured_on(mixed, needed) != lesser.node_id
        # This cluster may have more nodes yet.
        with pytest.raises(NotYet, match="no node of this cluster has made_up_isa"):
            mixed.options(["made_up_isa"])
    finally:
        cluster.remove_node(lesser)
    wait_until(lambda: known(mixed) == 2, "a node that left to be forgotten", 60)
    assert mixed.options(needed) == {}


def known(nodes: Placement) -> int:
    """How many nodes are known to run work, as the cluster is now."""
    nodes.look()
    return len(nodes.nodes)


def test_a_cluster_that_can_grow_is_asked_for_room_and_no_more_than_it_may_have(
    cluster: Cluster, nodes: dict[str, bool]
) -> None:
    """Nodes that all have something to do, of a cluster that may have 4 CPUs more."""
    told, busy = cluster.add_node(num_cpus=0, resources={CPUS_ON_DEMAND: 4}), []
    try:
        found = placement()
        assert found.cpus_on_demand == 10
        hold = ray.remote(num_cpus=0.5)(lambda: time.sleep(300))
        busy = [hold.options(scheduling_strategy=on_node(node)).remote() for node in found.nodes]
        found.want(50)
        room = {"CPU": 4.0}
        wait_until(lambda: waiting() == [room], "a task that asks for a whole node", 60)
        come = cluster.add_node(**CPU_NODE)
        try:
            wait_until(lambda: waiting() == [], "the task to find its node", 60)
            found.want(50)
            assert waiting() == [], "it may have no more"
        finally:
            cluster.remove_node(come)
        found.want(50)
        wait_until(lambda: waiting() == [room], "another, where that has gone", 60)
        found.want(0)
        wait_until(lambda: waiting() == [], "it to be taken back", 60)
    finally:
        for each in busy:
            ray.cancel(each, force=True)
        cluster.remove_node(told)


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


def test_every_panel_of_the_grafana_dashboard_has_data(run_there: OnCluster, monitor: Prometheus | None) -> None:
    if monitor is None:
        pytest.skip("no prometheus on PATH (Debian has it: apt-get install prometheus)")
    active = monitor.ask("targets", state="active")["activeTargets"]
    assert len(active) >= 3, "a node is missing"
    asked = {what: expression for what, expression in expressions().items() if OF_GPUS not in metrics_of(expression)}
    found = {what: monitor.over(expression, run_there.began, time.time()) for what, expression in asked.items()}
    assert [what for what, series in found.items() if not series] == []
    # Trainings got the GPU, and what is evaluated has none.
    streams = {series["metric"]["stream"] for series in found["GPU idle share, A"]}
    assert {"train fp32", "train finetune-w8"} <= streams, streams
    assert not [stream for stream in streams if stream.startswith("evaluate")]
    done, planned = (highest(found[f"Units done of planned, {which}"]) for which in "AB")
    assert 0 < done <= planned


def highest(series: list[dict[str, Any]]) -> float:
    """The largest value of the only series."""
    (only,) = series
    return max(float(value) for _, value in only["values"])
