"""What may be killed in a run, at moments that are drawn, many times: the same command finishes, nothing that was
finished is done again, nothing is left behind, and the table is that of an undisturbed run."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from ray import cloudpickle
from ray.cluster_utils import Cluster
from rich.console import Console
from support.disks import grow, small_disk
from support.faults import end, equals, strike, with_title
from support.runs import RUN_TIMEOUT_S, TINY, Finished, environment, free_port, start, wait_until
from support.toys import toy

from qray.graph.ray_backend import RayBackend
from qray.graph.runner import Runner
from qray.graph.session import ray_session
from qray.graph.store import Store

pytestmark = pytest.mark.slow

WholeRun = Callable[[int], tuple[Path, Finished]]
#: The line that a phase begins with.
PHASES = (
    "start train fp32", "train fp32: epoch 2/3", "trial qat", "start build", "start evaluate fp32", "start memory",
    "start measure latency", "start measure the costs", "done  measure the costs",
)  # fmt: skip
#: What ends a run in order, its exit code, and a line after which it does so.
SIGNALS = (("SIGHUP", 129, "train fp32: epoch 2/3"), ("SIGINT", 130, "done  build"), ("SIGTERM", 143, "trial qat"))
#: By the command line of the process: what a Ray is made of, without which the run ends; and what qray does in it.
OF_RAY = ("raylet/raylet", "gcs_server")
VICTIMS = (*OF_RAY, "ray::ReadClipNumbers", "ray::Mailbox", "ray::Board", "ray::sweep", "ray::build", "ray::memory",
           "qray.measure")  # fmt: skip
DELAY_S = 4.0


@pytest.fixture
def temporary() -> Iterator[Path]:
    """TMPDIR of runs: short, because Ray's sockets are below it."""
    folder = Path(tempfile.mkdtemp(prefix="q"))
    yield folder
    shutil.rmtree(folder)


def begin(data: Path, out: Path, temporary: Path, log: Path) -> subprocess.Popen[str]:
    """A run of the tiny study."""
    return start("run", "all", "--study", TINY, "--data", data, "--out", out, "--num-cpus", 2, log=log,
                 env=environment(TMPDIR=str(temporary), PYTHONUNBUFFERED="1"))  # fmt: skip


@pytest.mark.parametrize(
    ("how", "code", "phase"), [*(("SIGKILL", -9, phase) for phase in PHASES), *SIGNALS], ids=lambda each: str(each)
)
def test_a_driver_that_is_ended_at_a_random_moment_of_a_phase_costs_what_was_in_flight(
    how: str, code: int, phase: str, tiny_dataset: Path, whole_run: WholeRun, tmp_path: Path, temporary: Path
) -> None:
    out, log, seed = tmp_path / "out", tmp_path / "log", random.SystemRandom().randrange(1000)
    process = begin(tiny_dataset, out, temporary, log)
    wait_until(lambda: process.poll() is not None or phase in log.read_text(), phase)
    time.sleep(random.Random(seed).uniform(0, DELAY_S))
    struck = end(process, how, out, temporary)
    assert (struck.code, struck.left) == (code, []), f"seed {seed}"
    if how != "SIGKILL":
        assert "goes on from what was finished" in log.read_text(), f"seed {seed}"
    assert "Traceback" not in log.read_text(), f"seed {seed}"
    again = end(begin(tiny_dataset, out, temporary, log), "of itself", out, temporary)
    assert again.code == 0, (seed, log.read_text())
    assert struck.kept.items() <= again.kept.items(), f"seed {seed}: a finished unit was done again"
    equals(out, whole_run(2)[0])


@pytest.mark.parametrize("victim", VICTIMS)
def test_whatever_is_killed_the_same_command_finishes(
    victim: str, tiny_dataset: Path, whole_run: WholeRun, tmp_path: Path, temporary: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    process = begin(tiny_dataset, out, temporary, log)
    wait_until(lambda: process.poll() is not None or "epoch 1/3" in log.read_text(), "the first epoch")
    strike(process, victim)
    struck = end(process, "of itself", out, temporary)
    assert not struck.left
    assert (struck.code != 0) == (victim in OF_RAY), log.read_text()
    again = end(begin(tiny_dataset, out, temporary, log), "of itself", out, temporary)
    assert again.code == 0, log.read_text()
    assert struck.kept.items() <= again.kept.items(), "a finished unit was done again"
    equals(out, whole_run(2)[0])


def test_a_disk_that_fills_up_ends_a_run_with_a_sentence_and_nothing_lost(
    tiny_dataset: Path, whole_run: WholeRun, tmp_path: Path, temporary: Path
) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        out, log = disk / "out", tmp_path / "log"
        full = end(begin(tiny_dataset, out, temporary, log), "of itself", out, temporary)
        said = log.read_text()
        assert (full.code, full.left) == (1, []), said
        assert f"No space left on device: '{out}/" in said
        assert "make room" in said
        assert "Traceback" not in said
        grow(disk, "64m")
        again = end(begin(tiny_dataset, out, temporary, log), "of itself", out, temporary)
        assert again.code == 0, log.read_text()
        assert full.kept.items() <= again.kept.items(), "a finished unit was done again"
        equals(out, whole_run(2)[0])


def test_work_that_takes_more_memory_than_the_node_has_is_done_alone(
    tmp_path: Path, no_ray_address: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{(memory.total - memory.available + 2**30) / memory.total:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")

    def greedy() -> str:
        if not (tmp_path / "begun").exists():
            (tmp_path / "begun").touch()
            held = np.ones(3 * 2**28)
            time.sleep(60)
            return f"{held.sum()} were held"
        return "done"

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with ray_session(2):
        said = io.StringIO()
        runner = Runner(Store(tmp_path / "out"), RayBackend(), Console(file=said, width=400))
        runner.context = runner.backend
        unit = toy("greedy", greedy)
        runner.run([unit])
    assert runner.results[unit.key].record["value"] == "done", runner.results[unit.key].reason
    assert "which starts alone" in said.getvalue()


@pytest.mark.parametrize("how", ["killed", "preempted"])
def test_a_node_that_is_lost_costs_what_was_done_there(
    how: str, tiny_dataset: Path, whole_run: WholeRun, tmp_path: Path, no_ray_address: None
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": free_port()})
    try:
        nodes = {
            node.all_processes["raylet"][0].process.pid: node
            for node in (cluster.add_node(num_cpus=2) for _ in range(2))
        }
        process = start("run", "all", "--study", TINY, "--data", tiny_dataset, "--out", out, log=log,
                        env=environment(RAY_ADDRESS=cluster.address))  # fmt: skip
        wait_until(lambda: process.poll() is not None or "epoch 1/3" in log.read_text(), "the first epoch")
        (training,) = [p for p in psutil.process_iter() if with_title(p, "ray::train:fp32") and p.ppid() in nodes]
        # Preempted: it is told to go, and then goes.
        cluster.remove_node(nodes[training.ppid()], allow_graceful=how == "preempted")
        assert process.wait(RUN_TIMEOUT_S) == 0, log.read_text()
    finally:
        process.kill()
        cluster.shutdown()
    said = log.read_text()
    assert "lost  train fp32" in said
    assert [said.count(f"train fp32: epoch {epoch}/3") for epoch in (1, 2, 3)] == [1, 1, 1], said
    equals(out, whole_run(2)[0])
