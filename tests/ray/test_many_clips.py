"""A million clips: memory grows no faster than their number does, and that of a decode task not at all."""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import psutil
import pytest
import ray
from ray import cloudpickle
from ray._private.internal_api import memory_summary
from support.many_clips import planned, simulated
from support.videos import write_many_clips

from qray.data import stream
from qray.data.manifest import read_manifest
from qray.data.stream import _DecodeRows, clip_datasets, put_clips, stream_batches
from qray.data.stream_plan import StreamPlan
from qray.study import ClipSpec, Data

cloudpickle.register_pickle_by_value(sys.modules[__name__])

Begin = Callable[..., None]
MANY = 1_000_000
#: Rows of the list and their facts, and the table that is made of them.
BYTES_PER_ROW = 2500
SPEC = ClipSpec(frames=2, image_size=16, stride=1, eval_windows=1)
#: Clips of a decode task, as many as there are of EchoNet's size: frames are small here, not tasks.
CLIPS_PER_TASK = 160
STORE_BYTES = 200 * 2**20


def made_up(rows: int) -> pd.DataFrame:
    """Clips as the manifest gives them, with paths that are as long as paths are."""
    folder = "/data/of/some/length/EchoNet-Dynamic/Videos"
    return pd.DataFrame({"path": [f"{folder}/0X{i:016X}.avi" for i in range(rows)], "n_frames": 20})


@dataclass(frozen=True)
class SimulatedRows(_DecodeRows):
    """Decodes nothing: the frames of a clip are its number."""

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        def frames(path: Path, wanted: np.ndarray, size: int) -> np.ndarray:
            return np.full((*wanted.shape, size, size, 3), int(path.stem[2:], 16) % 251, np.uint8)

        # By its globals: a class that stands for another of its name travels to workers without its module.
        with patch.dict(_DecodeRows.__call__.__globals__, decode_frames=frames):
            return super().__call__(rows)


def test_a_list_is_read_in_so_many_bytes_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qray.data.manifest.probe_files", simulated)
    few, rows = write_many_clips(tmp_path / "few", 100), 10_000
    root = write_many_clips(tmp_path / "set", rows)
    # What is imported on the way is not the list's.
    read_manifest(few, Data())
    tracemalloc.start()
    try:
        manifest = read_manifest(root, Data())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(manifest.clips) == rows
    assert peak < BYTES_PER_ROW * rows, f"{peak / rows:.0f} bytes a row"


def test_a_decode_task_takes_the_same_memory_however_many_clips_there_are(shared_ray: None) -> None:
    rows = SimulatedRows(StreamPlan(SPEC, "eval", 1), put_clips(made_up(100_000)))
    few, number = SimulatedRows(rows.plan, put_clips(made_up(1))), {"id": np.array([0])}
    peaks = []
    for decode in (few, few, rows):
        tracemalloc.start()
        decode(number)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 100_000, peaks


@pytest.mark.slow
def test_a_million_rows_are_planned_in_bounded_memory(tmp_path: Path) -> None:
    found: dict[int, dict[str, float]] = {}
    for rows in (MANY // 100, MANY // 10, MANY):
        context = get_context("spawn")
        answers = context.Queue()
        root = write_many_clips(tmp_path / f"{rows}", rows)
        process = context.Process(target=planned, args=(root, answers))
        process.start()
        process.join(1800)
        assert process.exitcode == 0
        found[rows] = answers.get(timeout=5)
        print(f"\n{rows} rows: {found[rows]}", end="")
    assert found[MANY]["clips"] == MANY
    grown_mb = found[MANY]["peak_mb"] - found[MANY // 100]["peak_mb"]
    assert grown_mb < BYTES_PER_ROW * MANY / 2**20


def uss_mb(process: psutil.Process) -> float:
    """Memory that a process shares with no other, MiB."""
    return float(process.memory_full_info().uss) / 2**20


def streamed(reference: Any, rows: int, plan: StreamPlan) -> dict[str, float]:
    """Rows a second of a stream to its end, seconds to its first batch, and the most that this process, any worker and
    the object store took."""
    me, began = psutil.Process(), time.perf_counter()
    before, seen, looked, first = uss_mb(me), np.zeros(rows, np.uint8), 0.0, 0.0
    most = {"grown_mb": 0.0, "worker_mb": 0.0, "store_mb": 0.0}
    for batch in stream_batches(clip_datasets(reference, rows, plan), plan, "many"):
        first = first or time.perf_counter() - began
        assert (batch.frames[:, 0, 0, 0, 0, 0] == batch.index % 251).all()
        seen[batch.index] += 1
        if time.perf_counter() - looked > 5:
            looked = time.perf_counter()
            told = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
            workers = [p for p in me.children(recursive=True) if p.name().startswith("ray::")]
            now = {"grown_mb": uss_mb(me) - before, "worker_mb": max([uss_mb(p) for p in workers] or [0]),
                   "store_mb": float(told.split("Plasma memory usage ")[1].split()[0])}  # fmt: skip
            most = {name: max(value, now[name]) for name, value in most.items()}
            assert "Spilled" not in told
    assert (seen == 1).sum() == plan.rows_per_epoch(rows)
    seconds = time.perf_counter() - began
    return {"rows_per_s": round(seen.sum() / seconds), "first_s": first, **most}


@pytest.mark.slow
def test_a_million_rows_are_streamed_in_bounded_memory(local_ray: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    local_ray(2, object_store_bytes=STORE_BYTES)
    monkeypatch.setattr(stream, "_DecodeRows", SimulatedRows)
    found: dict[tuple[str, int], dict[str, float]] = {}
    for rows in (MANY // 100, MANY // 10, MANY):
        reference = put_clips(made_up(rows))
        for mode in ("train", "eval"):
            plan = StreamPlan(SPEC, mode, batch_size=16, cpus_per_task=0.5)  # type: ignore[arg-type]
            monkeypatch.setattr(stream, "BLOCK_BYTES", CLIPS_PER_TASK * plan.row_bytes())
            found[mode, rows] = streamed(reference, rows, plan)
            print(f"\n{mode}, {rows} rows: {found[mode, rows]}", end="")
    for mode in ("train", "eval"):
        few, many = found[mode, MANY // 10], found[mode, MANY]
        assert many["grown_mb"] < few["grown_mb"] + 100
        # An order of a million clips for each of the last epochs.
        assert many["worker_mb"] < few["worker_mb"] + 100
        assert many["store_mb"] < STORE_BYTES / 2**20
