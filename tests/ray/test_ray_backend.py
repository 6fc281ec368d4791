"""Units as Ray tasks: items of those that yield, failures without Ray's traceback, silence, and progress."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle
from ray.exceptions import OutOfMemoryError
from rich.console import Console
from support import toys
from support.runs import wait_until
from support.toys import Toy, counts, fails, toy

from qray.graph.ray_backend import RayBackend, lost
from qray.graph.runner import Runner
from qray.graph.store import Store
from qray.graph.telemetry import Board, Telemetry
from qray.graph.unit import Resources, Unit

# Workers have no path to the tests.
for module in (toys, sys.modules[__name__]):
    cloudpickle.register_pickle_by_value(module)


@pytest.fixture
def log() -> io.StringIO:
    """What the runner says."""
    return io.StringIO()


@pytest.fixture
def runner(tmp_path: Path, shared_ray: None, log: io.StringIO) -> Runner:
    """A runner on two logical CPUs."""
    backend = RayBackend()
    runner = Runner(Store(tmp_path), backend, Console(file=log))
    runner.context = backend
    return runner


def run(runner: Runner, work: Callable[..., Any], **more: Any) -> tuple[Toy, Any]:
    """The task of one unit, and what it left or why it failed."""
    task = Toy(work, **more)
    unit = Unit("toy", "toy", task, {})
    runner.run([unit])
    result = runner.results[unit.key]
    return task, result.record.get("value") if result.status == "ok" else result.reason


def test_every_item_of_a_task_that_yields_is_heard(runner: Runner) -> None:
    task, value = run(runner, counts)
    assert (task.heard_items, value) == ([0, 1, 2, 3], 3)


WEIGHTS_BYTES, TIMEOUT_S = 128 * 2**20, 120.0


def leaves_weights() -> Iterator[Any]:
    yield np.full(WEIGHTS_BYTES, 7, np.uint8)


def takes_weights(weights: Any) -> int:
    return int(weights[-1]) + len(weights)


def own_memory() -> int:
    """Bytes of memory that this process alone has: neither of files nor of the object store."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what memory is whose")
def test_weights_come_and_go_without_passing_through_the_memory_of_the_driver(runner: Runner) -> None:
    backend, store = runner.context, runner.store
    unit = Unit("toy", "toy", Toy(leaves_weights), {})
    before, most, over = own_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.005):
            most = max(most, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        first = backend.submit(unit, leaves_weights)
        assert backend.wait([first], TIMEOUT_S)
        store.save_checkpoint("k", 0, backend.take(first)[1])
        second = backend.submit(unit, takes_weights, store.latest_checkpoint("k"))
        assert backend.wait([second], TIMEOUT_S)
        assert backend.take(second)[1] == 7 + WEIGHTS_BYTES
    finally:
        over.set()
        watcher.join()
    assert most - before < WEIGHTS_BYTES / 4, f"{(most - before) / 2**20:.0f} MiB"


def test_a_record_says_on_which_node_it_was_made(runner: Runner) -> None:
    node = ray.get_runtime_context().get_node_id()
    assert run(runner, lambda: {"made": 1})[1].items() >= {"made": 1, "node": node}.items()


def test_a_failure_is_a_sentence(runner: Runner) -> None:
    assert run(runner, fails)[1] == "ValueError: no luck"


def test_a_process_that_was_killed_or_whose_gpu_failed_is_followed_by_another(runner: Runner, tmp_path: Path) -> None:
    def killed_then_broken() -> int:
        starts = sum(1 for _ in tmp_path.glob("start-*"))
        (tmp_path / f"start-{starts}").touch()
        if starts == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if starts == 1:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return starts

    assert run(runner, killed_then_broken)[1] == 2


def test_a_stream_of_items_whose_process_was_killed_begins_again(runner: Runner, tmp_path: Path) -> None:
    def killed_after_two() -> Iterator[int]:
        yield from (0, 1)
        if not (tmp_path / "begun").exists():
            (tmp_path / "begun").touch()
            # What was yielded shall arrive before.
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        yield 2

    task, value = run(runner, killed_after_two)
    assert (task.heard_items, value) == ([0, 1, 0, 1, 2], 2)


def test_what_lost_work_had_reserved_is_free_again(runner: Runner, tmp_path: Path) -> None:
    """As Tune reserves slots for trials, which Ray would keep to the end of the run."""

    def reserves() -> str:
        if not (tmp_path / "begun").exists():
            (tmp_path / "begun").touch()
            ray.get(ray.util.placement_group([{"CPU": 1}], name="reserved").ready(), timeout=TIMEOUT_S)
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    assert run(runner, reserves, groups=["none of this name", "reserved"])[1] == "done"
    wait_until(lambda: ray.available_resources().get("CPU") == 2, "both CPUs", TIMEOUT_S)


def test_memory_that_ran_out_is_told_from_work_that_failed() -> None:
    assert lost(OutOfMemoryError("the node runs low")) == "memory"
    assert lost(torch.OutOfMemoryError("CUDA out of memory")) == "memory"
    assert lost(ValueError("no luck")) == ""


def test_processes_of_a_name_are_shared_by_its_work_alone(runner: Runner) -> None:
    """What compiling leaves changed in a process neither training nor another engine shall see."""
    names = ("inductor", "", "openvino", "inductor", "openvino", "")
    units = [toy(f"{i}", os.getpid, resources=Resources(processes=name)) for i, name in enumerate(names)]
    for unit in units:
        runner.run([unit])
    pids = [runner.results[unit.key].record["value"] for unit in units]
    compiled, plain, other = pids[:3]
    assert len({compiled, plain, other}) == 3
    assert pids[3:] == [compiled, other, plain]


def test_one_alone_has_all_cpus_of_its_node(runner: Runner) -> None:
    def held() -> float:
        return float(ray.get_runtime_context().get_assigned_resources()["CPU"])

    assert run(runner, held, resources=Resources(exclusive=True))[1] == 2


def test_what_cannot_do_without_a_gpu_says_that_there_is_none(runner: Runner) -> None:
    reason = run(runner, lambda: "done", resources=Resources(gpu=True, on_gpu=True))[1]
    assert reason == "no machine of this Ray has an NVIDIA GPU"
    alone = run(runner, lambda: "done", resources=Resources(gpu=True, on_gpu=True, exclusive=True))[1]
    assert alone == reason


def test_two_runs_leave_the_slot_free_that_decoding_needs(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two CPUs, which are four slots, of which three may be held."""
    monkeypatch.setattr("qray.graph.neighbours.LOOK_EVERY_S", 0.0)
    monkeypatch.setattr("qray.graph.neighbours.KNOWN_AFTER_S", 0.0)
    backend, other = runner.context, ray.remote(num_cpus=0)(Board).options(name="board", namespace="qray-b").remote()
    assert backend.holders == 3
    ray.get(other.hold.remote(0, False))
    assert [backend.leave_room(held, 1) for held in range(4)] == [True, True, True, False]
    ray.get(other.hold.remote(1, False))
    # Each has its share, and what is left is free to decode.
    assert [backend.leave_room(held, 1) for held in range(2)] == [True, False]
    ray.get(other.hold.remote(3, True))
    assert not backend.leave_room(0, 1)
    # It has said that it waits, and nothing that it does not hold.
    assert ray.get(backend.board.held.remote()) == (0, True)
    ray.kill(other)
    wait_until(lambda: backend.leave_room(2, 1), "a run that died to be forgotten", 60)


def test_silence_ends_in_a_diagnosis(runner: Runner) -> None:
    began = time.monotonic()
    reason = run(runner, lambda: time.sleep(60), silence_s=1.0)[1]
    assert time.monotonic() - began < 30
    assert "nothing was heard for 1 s. CPUs:" in reason


def test_progress_of_a_task_is_said_where_there_is_no_terminal(
    runner: Runner, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qray.graph.runner.SPEAK_EVERY_S", 1.0)
    monkeypatch.setattr("qray.graph.ray_backend.LOOK_EVERY_S", 0.1)
    board = runner.context.board

    def slow() -> Iterator[int]:
        telemetry = Telemetry("train", "fp32", board, total=80)
        for step in range(5):
            time.sleep(1)
            telemetry.step(0.25, 16)
            yield step

    run(runner, slow)
    assert "/80 clips" in log.getvalue()
    assert "loss 0.2500" in log.getvalue()
