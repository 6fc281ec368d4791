"""The same run on a cluster: a node with a (logical) GPU and CPU nodes, and as a job of a running Ray."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.cluster_utils import Cluster
from ray.util.state import list_actors, list_tasks
from support.runs import FP32_ALONE, RUN_TIMEOUT_S, TINY, environment, qray, results, run_tiny, start, wait_until

from qray.errors import Unavailable
from qray.graph.placement import placement, quiet_node
from qray.measure.isa import ISA_FLAGS, native_isa

ROOT = Path(__file__).parents[2]


def units(out: Path, kind: str) -> list[dict[str, object]]:
    """The records of one kind of unit."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in (out / "units").glob(f"{kind}-*.json")]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
def on_cluster(cluster: Cluster, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of a run on the cluster, with one trial."""
    out = tmp_path_factory.mktemp("cluster") / "out"
    env = environment(RAY_ADDRESS=cluster.address)
    done = run_tiny("evaluate", tiny_dataset, out, "--set", "sweep.trials=1", env=env)
    assert done.code == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def nodes(cluster: Cluster, on_cluster: Path) -> dict[str, bool]:
    """Whether each node of the cluster has a GPU, by node id; this process is attached from here on."""
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    return {node["NodeID"]: node["Resources"].get("GPU", 0) > 0 for node in ray.nodes()}


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
        assert quiet_node(mixed.able(()))[0] == lesser.node_id
        assert quiet_node(mixed.able(needed))[0] != lesser.node_id
        with pytest.raises(Unavailable, match="no node of this cluster has made_up_isa"):
            mixed.options(["made_up_isa"])
    finally:
        cluster.remove_node(lesser)


def test_cluster_yaml_passes_rays_own_validator() -> None:
    import yaml

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    validate_config(prepare_config(config))
    types = config["available_node_types"]
    assert {kind for kind, node in types.items() if node["resources"].get("GPU")} == {"gpu_worker"}
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0


@dataclass(frozen=True)
class Head:
    """A running Ray: its address, its dashboard, an environment that holds its token, and the home of its jobs."""

    address: str
    dashboard: str
    env: dict[str, str]
    home: Path


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A `ray start --head` of this test's own, which asks for a token, ended by ending its processes."""
    token = tmp_path_factory.mktemp("token") / "auth_token"
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    # A job runs `python`, which is this environment's, as if it were activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with_token = environment(RAY_AUTH_TOKEN_PATH=str(token), PATH=path)
    port, dashboard, scratch = free_port(), free_port(), tempfile.mkdtemp(prefix="r")
    home = tmp_path_factory.mktemp("home")
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
        f"--dashboard-port={dashboard}", f"--metrics-export-port={free_port()}", "--disable-usage-stats",
        # Two Rays of one machine share this port's default, and the second then takes no jobs.
        f"--dashboard-agent-listen-port={free_port()}",
        # Short: the path of a socket has at most 107 characters.
        f"--temp-dir={scratch}",
    ]  # fmt: skip
    env = with_token | {"RAY_AUTH_MODE": "token", "HOME": str(home)}
    process = subprocess.Popen(command, env=env, start_new_session=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{dashboard}/api/version", timeout=2).close()
        except urllib.error.HTTPError:
            return True  # it asks for a token: it is there
        except OSError:
            return False
        return True

    try:
        wait_until(answers, "the dashboard of `ray start --head`", 120)
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", with_token, home)
    finally:
        # To the command alone: it ends what it started.
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def test_qray_submit_follows_the_job_to_its_end(head: Head, tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    shutil.copy(TINY, tmp_path / "work" / "tiny.yaml")
    # More than any job may be sent; and an address that Ray's client would take in the place of the one given.
    (tmp_path / "work" / "big.avi").touch()
    os.truncate(tmp_path / "work" / "big.avi", 620 * 2**20)
    address, env = head.dashboard.removeprefix("http://"), head.env | {"RAY_ADDRESS": "127.0.0.1:9"}
    done = qray("submit", "--address", f" {address}", "--study", "tiny.yaml", "--data", tiny_dataset,
                *FP32_ALONE, cwd=tmp_path / "work", env=env)  # fmt: skip
    assert done.code == 0, done.stdout + done.stderr
    assert "and nothing else of" in done.stdout
    assert "done  train fp32" in done.stdout
    # The job's own folder is gone when it ends.
    assert set(results(head.home / "qray-jobs" / "runs" / "tiny")["status"]) == {"ok"}


def test_ray_job_submit_completes(head: Head, tiny_dataset: Path, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    shutil.copytree(ROOT / "src", work / "src")
    shutil.copy(TINY, work / "tiny.yaml")
    run = ["python", "-m", "qray", "run", "train", "--study", "tiny.yaml", "--data", tiny_dataset, "--out", out,
           *FP32_ALONE]  # fmt: skip
    ray_command = Path(sys.executable).parent / "ray"
    done = subprocess.run(
        [ray_command, "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *map(str, run)],
        cwd=work, env=head.env | {"RAY_AUTH_MODE": "token"}, capture_output=True, text=True,
        timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert units(out, "train")


def test_progress_is_metrics_in_the_dashboard(cluster: Cluster, tiny_dataset: Path, tmp_path: Path) -> None:
    process = start("run", "train", "--study", TINY, "--data", tiny_dataset, "--out", tmp_path / "out",
                    "--set", "training.epochs=200", env=environment(RAY_ADDRESS=cluster.address))  # fmt: skip
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    wanted = {"ray_qray_clips_per_second", "ray_qray_training_loss", "ray_qray_mae"}

    def exported() -> bool:
        text = ""
        for node in ray.nodes():
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with contextlib.suppress(OSError):
                text += urllib.request.urlopen(url, timeout=5).read().decode()
        lines = [line for line in text.splitlines() if 'variant="train:fp32"' in line or 'variant="fp32"' in line]
        return all(any(line.startswith(name) for line in lines) for name in wanted)

    try:
        wait_until(exported, f"the metrics {sorted(wanted)}", 180, every_s=1.0)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)


def test_a_run_attaches_to_a_ray_that_asks_for_a_token(head: Head) -> None:
    code = (
        "from qray.ray_token import use_token_if_asked; use_token_if_asked()\n"
        "import ray; from qray.graph.session import ray_session\n"
        "with ray_session(): print(len(ray.nodes()))"
    )
    env = head.env | {"RAY_ADDRESS": head.address}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1"], done.stderr
