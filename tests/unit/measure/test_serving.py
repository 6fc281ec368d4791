"""Cold starts and streams are those of fresh processes that predict at once; what cannot be served is a reason."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from support.shelf import Shelf

from qray.engines.registry import load_artifact
from qray.errors import QrayError
from qray.graph.store import pack_folder
from qray.measure.serving import LEAST_CALLS, Served, Streams, _Workers, measure_serving
from qray.point import Point
from qray.study import Serving
from qray.units.serving import serving

POINT = Point(threads=1, batch=2)
SHORT = Serving(cold_starts=2, streams=(2, 1), seconds=0.2)


@pytest.fixture(scope="module")
def measured(shelf: Shelf) -> tuple[dict[str, Any], float]:
    """What was measured of an artifact, and how long it took."""
    began = time.monotonic()
    return measure_serving(shelf["ptq-onnxruntime"].folder, POINT, SHORT, 120), time.monotonic() - began


def test_every_cold_start_is_that_of_a_process(measured: tuple[dict[str, Any], float]) -> None:
    found, took = measured
    assert len(found["cold_starts_s"]) == SHORT.cold_starts
    assert min(found["cold_starts_s"]) > 0.05
    assert sum(found["cold_starts_s"]) < took


def test_each_number_of_streams_is_measured_the_fewest_first(measured: tuple[dict[str, Any], float]) -> None:
    assert [found["streams"] for found in measured[0]["streams"]] == [1, 2]


def test_streams_make_enough_calls_for_their_percentile(measured: tuple[dict[str, Any], float]) -> None:
    for found in measured[0]["streams"]:
        assert found["calls"] >= LEAST_CALLS
        assert 0 < found["p50_ms"] <= found["p95_ms"]


def test_clips_a_second_are_those_of_all_streams(measured: tuple[dict[str, Any], float]) -> None:
    """Each stream predicts without a pause, so half of its calls take longer than the median, and half no longer."""
    for found in measured[0]["streams"]:
        by_the_median = 1e3 * POINT.batch * found["streams"] / found["p50_ms"]
        assert 0.2 * by_the_median < found["clips_s"] < 2 * by_the_median


def test_one_that_cannot_be_served_costs_the_others_nothing(shelf: Shelf, tmp_path: Path) -> None:
    good = pack_folder(shelf["ptq-onnxruntime"].folder)
    broken = Path(shutil.copytree(shelf["ptq-onnxruntime"].folder, tmp_path / "broken"))
    (broken / "model.onnx").write_bytes(b"nothing")
    settings = Serving(cold_starts=1, streams=(1,), seconds=0.01)
    *_, last = serving(POINT, settings, ("bad", "good"), pack_folder(broken), good)
    found = last["served"]
    assert "its process ended" in found["bad"]["error"]
    assert "INVALID_PROTOBUF" in found["bad"]["error"]
    assert found["good"]["error"] is None
    assert [each["streams"] for each in found["good"]["streams"]] == [1]


def test_what_takes_too_long_is_ended(shelf: Shelf) -> None:
    began = time.monotonic()
    with pytest.raises(QrayError, match="it took longer than 1 s"):
        measure_serving(shelf["ptq-onnxruntime"].folder, POINT, Serving(seconds=600, streams=(1,)), 1)
    assert time.monotonic() - began < 60


def test_streams_are_not_bound_to_the_same_core(shelf: Shelf) -> None:
    """By default OpenVINO binds the only thread of each process to the first core."""
    predict, own = load_artifact(shelf["ptq-openvino"]), os.sched_getaffinity(0)
    predict(shelf.clips)
    threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset(own)}


def test_what_is_no_artifact_is_said(tmp_path: Path) -> None:
    with pytest.raises(QrayError, match=r"its process ended: .*artifact"):
        measure_serving(tmp_path, POINT, SHORT, 60)


def test_no_streams_are_within_a_bound_that_none_keeps() -> None:
    slow, unknown = Streams(1, 5.0, 50, 180.0, 200.0), Streams(2, 9.0, 10, 150.0, None)
    assert Served(streams=[slow, unknown]).within(199) is None
    assert Served(streams=[slow, unknown]).within(200) == slow


def test_one_that_ends_while_others_are_asked_is_said(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, as by a system that is out of memory, between its first prediction and what it is told next."""
    start = _Workers.start

    def and_one_dies(workers: _Workers, count: int) -> None:
        start(workers, count)
        if count == 2:
            workers._running[0].kill()
            workers._running[0].wait()

    monkeypatch.setattr(_Workers, "start", and_one_dies)
    with pytest.raises(QrayError, match="its process ended: exit code -9"):
        measure_serving(shelf["ptq-onnxruntime"].folder, POINT, SHORT, 120)
