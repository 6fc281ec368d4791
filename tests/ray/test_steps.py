"""The loop that runs units of work: what one failure costs, what silence costs, and what is said meanwhile."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from qray.errors import QrayError
from qray.orchestrate.steps import Runner, Skipped, Step
from qray.orchestrate.store import Store
from qray.orchestrate.telemetry import Telemetry, start_board


@ray.remote(num_cpus=0.1, max_retries=0)
def work(value: int) -> int:
    if value < 0:
        raise QrayError("negative")
    return value


@ray.remote(num_cpus=0.1, num_returns="streaming", max_retries=0)
def count(to: int) -> Iterator[int]:
    # Ray sends into generators, which a range does not take.
    yield from (i for i in range(to))


@ray.remote(num_cpus=0.1, max_retries=0)
def sleep_for(seconds: float) -> None:
    time.sleep(seconds)


@pytest.fixture
def log() -> io.StringIO:
    """What the runner says."""
    return io.StringIO()


@pytest.fixture
def runner(tmp_path: Path, shared_ray: None, log: io.StringIO) -> Runner:
    """A runner on two logical CPUs."""
    return Runner(Store(tmp_path), Console(file=log))


def step(key: str, start: Callable[[], Any], **options: Any) -> Step:
    """A step whose record holds its value."""
    return Step("build", key, f"step {key}", start, lambda value: {"value": value}, **options)


def test_a_failure_costs_only_what_needs_it(runner: Runner) -> None:
    runner.add(step("bad", lambda: work.remote(-1)))
    runner.add(step("needs-bad", lambda: work.remote(1), after=["bad"]))
    runner.add(step("other", lambda: work.remote(2)))
    runner.run()
    assert {key: result.status for key, result in runner.results.items()} == {
        "bad": "failed", "needs-bad": "failed", "other": "ok"}  # fmt: skip
    assert runner.results["needs-bad"].reason == "negative"


def test_a_skip_is_passed_on_as_a_skip(runner: Runner) -> None:
    def refuse(value: Any) -> dict[str, Any]:
        raise Skipped("no engine")

    runner.add(Step("build", "engine", "build", lambda: work.remote(1), refuse))
    runner.add(step("evaluation", lambda: work.remote(1), after=["engine"]))
    runner.run()
    assert [runner.results[key].status for key in ("engine", "evaluation")] == ["skipped", "skipped"]
    assert runner.results["evaluation"].reason == "no engine"


def test_every_item_of_a_streaming_step_is_heard(runner: Runner) -> None:
    heard: list[int] = []
    runner.add(step("stream", lambda: count.remote(4), on_item=heard.append))
    runner.run()
    assert heard == [0, 1, 2, 3]
    assert runner.record("stream")["value"] == 3


def test_a_finished_unit_is_not_started_again(runner: Runner, tmp_path: Path) -> None:
    runner.add(step("once", lambda: work.remote(7)))
    runner.run()
    again = Runner(Store(tmp_path), Console(file=io.StringIO()))

    def never() -> Any:
        raise AssertionError("started again")

    again.add(step("once", never))
    again.run()
    assert again.record("once")["value"] == 7


def test_silence_ends_in_a_diagnosis(runner: Runner) -> None:
    runner.add(step("silent", lambda: sleep_for.remote(60), silence_s=1.0))
    began = time.monotonic()
    runner.run()
    assert time.monotonic() - began < 30
    assert runner.results["silent"].status == "failed"
    assert "nothing was heard for 1 s. CPUs:" in str(runner.results["silent"].reason)


def test_a_step_waits_for_its_slots(runner: Runner) -> None:
    alone = step("alone", lambda: sleep_for.remote(1), slots=99)
    runner.add(step("first", lambda: sleep_for.remote(2)))
    runner.add(alone)
    runner.run()
    first, second = runner.record("first"), runner.record("alone")
    assert second["started"] >= first["started"] + first["seconds"] - 0.1


def test_progress_of_a_task_is_said_where_there_is_no_terminal(
    runner: Runner, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qray.orchestrate.steps.SPEAK_EVERY_S", 1.0)
    monkeypatch.setattr("qray.orchestrate.steps.LOOK_EVERY_S", 0.1)
    runner.board = start_board()

    @ray.remote(num_cpus=0.1)
    def slow(board: Any) -> None:
        telemetry = Telemetry("fp32", board, total=80)
        for _ in range(5):
            time.sleep(1)
            telemetry.step(0.25, 16)

    runner.add(step("slow", lambda: slow.remote(runner.board)))
    runner.run()
    assert "/80 clips" in log.getvalue()
    assert "loss 0.2500" in log.getvalue()
