"""Latency: every variant gets its calls, interleaved, in a pinned process of its own; small samples stay silent."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.shelf import Shelf

from qray.errors import QrayError
from qray.measure.host import host_name
from qray.measure.latency import (
    QUIET_MARK,
    QUIET_WAITS,
    Latency,
    cores,
    interleave,
    measure_latency,
    run_subprocess,
    single_process_environment,
    wait_quietly,
)
from qray.point import Point
from qray.study import Measure

SHORT = Measure(seconds=0.02, min_calls=7, blocks=3, warmup_calls=1)


class Recorder:
    """Calls that note who was called, in order."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def __call__(self, name: str, seconds: float = 0.0) -> Callable[[], None]:
        def call() -> None:
            self.order.append(name)
            time.sleep(seconds)

        return call


def rounds(order: list[str]) -> list[str]:
    """The order of blocks: runs of the same name as one."""
    return [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]


def test_every_variant_gets_its_least_number_of_calls() -> None:
    samples = interleave({"slow": Recorder()("slow", 0.01), "fast": Recorder()("fast")}, SHORT)
    assert all(sum(map(len, blocks)) >= SHORT.min_calls for blocks in samples.values())


def test_every_variant_gets_its_blocks() -> None:
    samples = interleave({"one": Recorder()("one"), "other": Recorder()("other")}, SHORT)
    assert {name: len(blocks) for name, blocks in samples.items()} == {"one": 3, "other": 3}


def test_a_fast_variant_is_called_until_its_seconds_are_spent() -> None:
    blocks = interleave({"fast": Recorder()("fast")}, SHORT)["fast"]
    assert sum(map(sum, blocks)) >= SHORT.seconds * 1e3


def test_durations_are_milliseconds() -> None:
    blocks = interleave({"slow": Recorder()("slow", 0.02)}, SHORT)["slow"]
    assert 20 <= min(min(block) for block in blocks) < 40


def test_variants_take_turns() -> None:
    record, names = Recorder(), ("a", "b", "c")
    interleave({name: record(name) for name in names}, SHORT.model_copy(update={"warmup_calls": 0}))
    # Nine turns; the last of a round may be the first of the next, which looks like one, twice at most.
    assert len(rounds(record.order)) >= 7


def test_the_order_of_turns_changes() -> None:
    record, names = Recorder(), "abcdef"
    settings = Measure(seconds=0.001, min_calls=2, blocks=2, warmup_calls=1)
    interleave({name: record(name) for name in names}, settings)
    turns = rounds(record.order[len(names) :])
    assert turns[:6] != list(names)


def test_nothing_to_measure_is_no_error() -> None:
    assert interleave({}, SHORT) == {}


def latency_of(n: int) -> Latency:
    return Latency([list(map(float, range(n)))])


@pytest.mark.parametrize(("percent", "least"), [(50, 4), (90, 20), (99, 200)])
def test_a_percentile_is_given_from_two_samples_beyond_it_on(percent: float, least: int) -> None:
    assert latency_of(least).percentile(percent) is not None


@pytest.mark.parametrize(("percent", "least"), [(50, 4), (90, 20), (99, 200)])
def test_a_sample_too_small_gives_no_percentile(percent: float, least: int) -> None:
    assert latency_of(least - 1).percentile(percent) is None


def test_a_percentile_is_of_all_blocks_together() -> None:
    assert Latency([[1.0, 2.0], [3.0, 4.0, 5.0]]).percentile(50) == 3


@pytest.fixture(scope="module")
def measured(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Latency]:
    """Two sound artifacts and a folder that holds none, measured together."""
    artifacts = {name: shelf[name].folder for name in ("fp32-onnxruntime", "ptq-onnxruntime")}
    artifacts["broken"] = tmp_path_factory.mktemp("broken")
    return measure_latency(artifacts, Point(threads=1, batch=2), SHORT, timeout_s=120)


def test_a_broken_artifact_does_not_cost_the_others(measured: dict[str, Latency]) -> None:
    assert {name: m.n >= SHORT.min_calls for name, m in measured.items()} == {
        "fp32-onnxruntime": True, "ptq-onnxruntime": True, "broken": False,
    }  # fmt: skip


def test_a_broken_artifact_has_its_reason(measured: dict[str, Latency]) -> None:
    assert "not an artifact" in (measured["broken"].error or "")


def test_a_measurement_names_its_host_and_flags(measured: dict[str, Latency]) -> None:
    found = measured["ptq-onnxruntime"]
    # The host as it is, not as the pinned process sees it.
    assert (found.host, bool(found.cpu_flags), found.error) == (host_name(), True, None)


def report_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> int:
    """Number of cores that a process pinned as measurements are may run on."""
    (tmp_path / "affinity_report.py").write_text(
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "from qray.measure.latency import pin_to_given_cores\n"
        "pin_to_given_cores()\n"
        "Path(sys.argv[1]).write_text(json.dumps(len(os.sched_getaffinity(0))))\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    answer = tmp_path / "answer.json"
    run_subprocess(["affinity_report", str(answer)], threads, 60, "affinity")
    return int(json.loads(answer.read_text()))


@pytest.mark.parametrize("threads", [1, len(os.sched_getaffinity(0))])
def test_a_measuring_process_stays_on_as_many_cores_as_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    assert report_affinity(tmp_path, monkeypatch, threads) == threads


def test_cores_are_those_that_this_process_may_use() -> None:
    assert set(cores(1)) <= os.sched_getaffinity(0)


def test_every_thread_pool_is_as_large_as_the_study_says() -> None:
    environment = single_process_environment(3)
    assert {environment[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}


def test_units_side_by_side_wait_without_spinning_and_a_measurement_as_the_libraries_choose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (*QUIET_WAITS, QUIET_MARK):
        monkeypatch.delenv(name, raising=False)
    wait_quietly()
    assert QUIET_WAITS.items() <= os.environ.items()
    assert not {*QUIET_WAITS, QUIET_MARK} & single_process_environment(1).keys()
    for name in (*QUIET_WAITS, QUIET_MARK):
        del os.environ[name]


def test_how_threads_wait_is_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(QUIET_MARK, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    wait_quietly()
    assert os.environ["OMP_WAIT_POLICY"] == single_process_environment(1)["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_measurement_that_takes_too_long_says_what_to_lower() -> None:
    with pytest.raises(QrayError, match=r"measuring nothing took longer than 0 s; lower measure\.seconds or blocks"):
        run_subprocess(["timeit", "-n", "1000000000", "pass"], 1, 0.3, "nothing")


def test_a_measurement_that_fails_says_why() -> None:
    with pytest.raises(QrayError, match=r"measuring it failed: .*No module named qray\.no_such_module"):
        run_subprocess(["qray.no_such_module"], 1, 60, "it")


def test_what_a_measurement_leaves_behind_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that an engine forked, say, which holds what its parent's output went into."""
    (tmp_path / "leaver.py").write_text(
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])\n"
        "sys.exit('enough')\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    began = time.monotonic()
    with pytest.raises(QrayError, match="measuring it failed: enough"):
        run_subprocess(["leaver"], 1, 60, "it")
    assert time.monotonic() - began < 15
