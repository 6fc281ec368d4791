"""Streams that go round for half an hour: no process grows, in memory, threads or open files.

QRAY_SOAK_MINUTES shortens it by hand: QRAY_SOAK_MINUTES=10 pytest -s -m slow tests/ray/test_soak.py
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import ray
from ray import cloudpickle
from ray._private.internal_api import memory_summary
from support.videos import numbered_frames, write_video

from qray.data.stream import clip_datasets, put_clips, stream_batches
from qray.data.stream_plan import StreamPlan
from qray.malloc import ARENAS
from qray.study import ClipSpec

cloudpickle.register_pickle_by_value(sys.modules[__name__])

MINUTES = float(os.environ.get("QRAY_SOAK_MINUTES", "30"))
#: Of the time, in which processes start, import and fill their pools.
WARM_UP = 0.3
EVERY_S = 5.0
#: What a process may have grown by at the end, by the line through its samples: MiB, threads, open files.
MOST = {"uss_mb": 16.0, "threads": 2.0, "files": 4.0}
STORE_BYTES = 200 * 2**20
SPEC = ClipSpec(frames=8, image_size=64, stride=2, eval_windows=2)
#: As many as TEST has in EchoNet-Dynamic. Each stream is a data set or more, and of each Ray Data keeps 24 KB to the
#: end of a run, in every process that decodes: its task is another function for each (`_labels` of
#: `TaskPoolMapOperator`). Of evaluations of 200 clips, a thousand in half an hour, that made 24 MiB.
CLIPS, BATCH = 1277, 16
#: A training's epochs; an evaluation passes over the clips once.
EPOCHS = 12
#: The control plane keeps what tasks there were, 100,000 of them unless told otherwise. Half an hour's are fewer, so
#: that it would grow throughout.
CONFIG = {"task_events_max_num_task_in_gcs": 1000}


def rounds(reference: Any, mode: str, epochs: int, until: float) -> int:
    """Streams, one after another, until so late; the clips that they delivered."""
    seen = 0
    while time.time() < until:
        plan = StreamPlan(SPEC, mode, BATCH, seed=seen, epochs=epochs, cpus_per_task=0.5)  # type: ignore[arg-type]
        for batch in stream_batches(clip_datasets(reference, CLIPS, plan), plan, mode):
            assert batch.ok.all()
            seen += len(batch.index)
            if time.time() > until:
                break
    return seen


def sample(store: list[float], titles: dict[int, str]) -> dict[int, dict[str, float]]:
    """What every process of the session holds, by its id; to `store`, MiB in the object store; to `titles`, what it is
    called."""
    found = dict[int, dict[str, float]]()
    for process in (me := psutil.Process(), *me.children(recursive=True)):
        try:
            with process.oneshot():
                # Ray titles its workers by what they do at the moment.
                words = process.cmdline()
                known = next((Path(w).name for w in words if w.endswith((".py", "raylet", "gcs_server"))), "")
                titles[process.pid] = known or process.name()
                found[process.pid] = {
                    "uss_mb": process.memory_full_info().uss / 2**20, "threads": process.num_threads(),
                    "files": process.num_fds(),
                }  # fmt: skip
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    told = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    store.append(float(told.split("Plasma memory usage ")[1].split()[0]))
    return found


@pytest.mark.slow
def test_no_process_grows_while_streams_go_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # As `qray run` has it for a Ray of its own, and cluster.yaml for those of a cluster.
    monkeypatch.setenv("MALLOC_ARENA_MAX", str(ARENAS))
    paths = [write_video(tmp_path / f"{i}.avi", numbered_frames(20 + i % 8)) for i in range(CLIPS)]
    clips = pd.DataFrame({"path": [str(p) for p in paths], "n_frames": [20 + i % 8 for i in range(CLIPS)]})
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=STORE_BYTES, _system_config=CONFIG,
    )  # fmt: skip
    times: list[float] = []
    held: defaultdict[int, list[dict[str, float]]] = defaultdict(list)
    titles: dict[int, str] = {}
    store: list[float] = []
    try:
        reference, until = [put_clips(clips)], time.time() + 60 * MINUTES
        # Both hold a slot, as trainings and evaluations do.
        work = ray.remote(num_cpus=0.5)(lambda ref, *more: rounds(ref[0], *more))
        jobs = [work.remote(reference, "train", EPOCHS, until), work.remote(reference, "eval", 1, until)]
        while time.time() < until:
            time.sleep(EVERY_S)
            times.append(time.time())
            for pid, figures in sample(store, titles).items():
                held[pid].append(figures | {"at": times[-1]})
        delivered = ray.get(jobs, timeout=120)
    finally:
        ray.shutdown()
    begin = times[0] + WARM_UP * (times[-1] - times[0])
    print(f"\n{MINUTES:g} minutes, {delivered[0]} clips trained on, {delivered[1]} evaluated", end="")
    too_much = []
    for pid, figures in sorted(held.items()):
        late = [one for one in figures if one["at"] >= begin]
        # Those that were there all the time; Ray ends and starts workers.
        if len(late) < 0.9 * sum(at >= begin for at in times):
            continue
        grown = {}
        for what in MOST:
            slope = np.polyfit([one["at"] for one in late], [one[what] for one in late], 1)[0]
            grown[what] = slope * (times[-1] - begin)
        name = f"{titles[pid]} {pid}"
        print(f"\n{name:<24} {late[-1]['uss_mb']:7.1f} MiB, " + ", ".join(f"{w} {g:+.1f}" for w, g in grown.items()),
              end="")  # fmt: skip
        too_much += [f"{name}: {what} {grown[what]:+.1f}" for what, most in MOST.items() if grown[what] > most]
    late_store = np.array(store[len(store) - sum(at >= begin for at in times) :])
    print(f"\nobject store: median {np.median(late_store):.0f} MiB, most {late_store.max():.0f}; {len(held)} processes")
    assert not too_much
    first, second = np.array_split(late_store, 2)
    assert np.median(second) < np.median(first) + 0.1 * STORE_BYTES / 2**20
