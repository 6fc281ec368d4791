"""What the streams deliver, on 1, 2 and 4 logical CPUs, and what they do when clips or the cluster fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import psutil
import pytest
import ray
from ray._private.internal_api import memory_summary
from ray.data._internal.stats import get_or_create_stats_actor
from support.faults import with_title
from support.videos import number_of, numbered_frames, write_video

from qray.data import stream
from qray.data.stream import StreamStalled, cached, clip_datasets, put_clips, stream_batches
from qray.data.stream_plan import StreamPlan
from qray.study import ClipSpec

#: The order of the tests is that of their sessions: 1, 4 and 2 CPUs, then a small object store.
N_VIDEOS, N_FRAMES = 10, 20
SPEC = ClipSpec(frames=4, image_size=32, stride=2, eval_windows=2)
Begin = Callable[..., None]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Ten videos of twenty numbered frames."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [write_video(folder / f"{i}.avi", numbered_frames(N_FRAMES)) for i in range(N_VIDEOS)]
    return pd.DataFrame({"clip": range(N_VIDEOS), "path": [str(p) for p in paths], "n_frames": N_FRAMES})


def indices(clips: pd.DataFrame, plan: StreamPlan) -> list[list[int]]:
    """Clip numbers of each batch of a full pass."""
    datasets = clip_datasets(put_clips(clips), len(clips), plan)
    return [batch.index.tolist() for batch in stream_batches(datasets, plan, "test")]


def threads() -> list[str]:
    """Threads of streams, and those in which Ray Data executes and reads them."""
    of_streams = ("stream-", "StreamingExecutor", "iter_threaded")
    return [t.name for t in threading.enumerate() if t.name.startswith(of_streams)]


def test_a_stream_without_a_cpu_ends_with_a_diagnosis(clips: pd.DataFrame, local_ray: Begin) -> None:
    local_ray(1)

    @ray.remote(num_cpus=1)
    class Holder:
        def ready(self) -> bool:
            return True

    holder = Holder.remote()  # type: ignore[attr-defined]
    assert ray.get(holder.ready.remote(), timeout=60)
    plan = StreamPlan(SPEC, "eval", batch_size=4, timeout_s=5)
    datasets = clip_datasets(put_clips(clips), N_VIDEOS, plan)
    with pytest.raises(StreamStalled, match="CPUs: 0 free of 1"):
        list(stream_batches(datasets, plan, "starved"))
    assert not threads(), "a thread outlived its stream"


@pytest.fixture(scope="module", params=[1, 4, 2])
def slot(request: pytest.FixtureRequest, local_ray: Begin) -> float:
    """CPUs in a slot of a session of each size; tests of one session come together."""
    local_ray(request.param)
    return min(1.0, request.param / 4)


def test_each_epoch_is_a_permutation_of_the_clips_while_a_consumer_holds_slots(
    clips: pd.DataFrame, slot: float
) -> None:

    @ray.remote(num_cpus=slot)
    def consume(ref: list[object], plan: StreamPlan) -> list[list[int]]:
        datasets = clip_datasets(ref[0], N_VIDEOS, plan)
        return [batch.index.tolist() for batch in stream_batches(datasets, plan, "test")]

    plan = StreamPlan(SPEC, "train", batch_size=5, epochs=3, cpus_per_task=slot, timeout_s=150)
    evaluation = StreamPlan(SPEC, "eval", batch_size=4, cpus_per_task=slot, timeout_s=150)
    ref = [put_clips(clips)]
    # A training task and two evaluations at once, the most that a cluster of this size holds.
    trained, *evaluated = ray.get([consume.remote(ref, p) for p in (plan, evaluation, evaluation)], timeout=400)
    epochs = [[*trained[at], *trained[at + 1]] for at in (0, 2, 4)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(N_VIDEOS))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [list(chain(*batches)) for batches in evaluated] == [list(range(N_VIDEOS))] * 2


@pytest.mark.parametrize("batch_size", [6, 12])
def test_each_clip_reaches_one_of_three_workers_once_an_epoch_while_they_hold_all_slots_but_one(
    batch_size: int, clips: pd.DataFrame, slot: float
) -> None:
    """Whole batches, and one of all ten clips, which three do not divide."""
    plan = StreamPlan(SPEC, "train", batch_size, epochs=3, cpus_per_task=slot, timeout_s=150, shards=3)

    @ray.remote(num_cpus=slot)
    def consume(shard: ray.data.DataIterator) -> list[list[int]]:
        batches = stream_batches([shard], plan, "test", plan.shard_rows(N_VIDEOS))
        return [batch.index[batch.index >= 0].tolist() for batch in batches]

    (only,) = clip_datasets(put_clips(clips), N_VIDEOS, plan)
    read = ray.get([consume.remote(shard) for shard in only.streaming_split(3, equal=True)], timeout=400)
    assert read == [[step.tolist() for step in plan.shard_clips(N_VIDEOS, shard)] for shard in range(3)]
    epochs = [list(chain(*each)) for each in zip(*read, strict=True)]
    assert all(len(epoch) == len(set(epoch)) == min(batch_size, N_VIDEOS) for epoch in epochs)


def test_a_stream_that_starts_at_an_epoch_equals_the_rest_of_a_whole_one(clips: pd.DataFrame, shared_ray: None) -> None:
    whole = indices(clips, StreamPlan(SPEC, "train", batch_size=4, seed=3, epochs=3))
    rest = indices(clips, StreamPlan(SPEC, "train", batch_size=4, seed=3, first_epoch=1, epochs=3))
    assert rest == whole[2:]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_stream_of_several_datasets_delivers_what_one_would(
    mode: Literal["train", "eval"], clips: pd.DataFrame, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = StreamPlan(SPEC, mode, batch_size=4, seed=3, epochs=5)
    whole = indices(clips, plan)
    monkeypatch.setattr(stream, "BLOCK_BYTES", 4 * plan.row_bytes())
    monkeypatch.setattr(stream, "TASKS_PER_DATASET", 1)
    monkeypatch.setattr(stream, "TASKS_PER_SLOT", 1)
    assert len(list(stream.clip_datasets(put_clips(clips), N_VIDEOS, plan))) > 1
    assert indices(clips, plan) == whole


def test_all_datasets_of_a_name_are_one_line_of_rays_list(
    clips: pd.DataFrame, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "TASKS_PER_DATASET", 1)
    monkeypatch.setattr(stream, "TASKS_PER_SLOT", 1)
    plan = StreamPlan(SPEC, "eval", batch_size=4)
    list(stream_batches(clip_datasets(put_clips(clips), N_VIDEOS, plan), plan, "a name"))
    decoded = cached(clip_datasets(put_clips(clips), N_VIDEOS, plan), N_VIDEOS, plan)
    assert decoded is not None
    for _ in range(3):
        list(stream_batches(decoded, plan, "a name"))
    listed = ray.get(get_or_create_stats_actor().get_datasets.remote(), timeout=60)
    (only,) = [one for name, one in listed.items() if name.startswith("a-name_")]
    assert only["state"] == "FINISHED"


@pytest.mark.parametrize("actor", ["_StatsActor", "_AutoscalingCoordinatorActor"])
def test_a_stream_outlives_what_ray_data_keeps_beside_it(actor: str, clips: pd.DataFrame, shared_ray: None) -> None:
    plan = StreamPlan(SPEC, "train", batch_size=4, seed=3, epochs=3)
    whole = indices(clips, plan)
    batches = stream_batches(clip_datasets(put_clips(clips), N_VIDEOS, plan), plan, "test")
    read = [next(batches).index.tolist()]
    victims = [p for p in psutil.Process().children(recursive=True) if with_title(p, f"ray::{actor}")]
    assert len(victims) == 1
    victims[0].kill()
    assert read + [batch.index.tolist() for batch in batches] == whole
    assert indices(clips, plan) == whole


def test_an_evaluation_delivers_the_frames_it_should(clips: pd.DataFrame, shared_ray: None) -> None:
    plan = StreamPlan(SPEC, "eval", batch_size=4)
    datasets = clip_datasets(put_clips(clips), N_VIDEOS, plan)
    batch = next(iter(stream_batches(datasets, plan, "test")))
    assert batch.frames.shape == (4, 2, 4, 32, 32, 3)
    assert batch.frames.dtype == np.uint8
    numbers = [[round(number_of(frame)) for frame in window] for window in batch.frames[0]]
    assert numbers == [[0, 2, 4, 6], [13, 15, 17, 19]]


def test_a_clip_that_breaks_after_the_check_costs_only_itself(
    clips: pd.DataFrame, tmp_path: Path, shared_ray: None
) -> None:
    broken = tmp_path / "broken.avi"
    broken.write_bytes(Path(clips["path"][0]).read_bytes()[:3000])
    clips = clips.assign(path=[*clips["path"][:3], str(broken), *clips["path"][4:9], str(tmp_path / "gone.avi")])
    plan = StreamPlan(SPEC, "eval", batch_size=10)
    datasets = clip_datasets(put_clips(clips), N_VIDEOS, plan)
    batch = next(iter(stream_batches(datasets, plan, "test")))
    assert [i for i, good in enumerate(batch.ok) if not good] == [3, 9]
    assert "file not found" in batch.errors[9]
    assert batch.frames[8].any()


def test_a_stream_that_has_ended_leaves_no_thread(clips: pd.DataFrame, shared_ray: None) -> None:
    for _ in range(3):
        indices(clips, StreamPlan(SPEC, "train", batch_size=4, epochs=2))
        assert not threads()


def test_a_stream_that_is_left_early_leaves_nothing_running(clips: pd.DataFrame, shared_ray: None) -> None:
    plan = StreamPlan(SPEC, "train", batch_size=2, epochs=200)
    stream = stream_batches(clip_datasets(put_clips(clips), N_VIDEOS, plan), plan, "left")
    next(stream)
    stream.close()
    assert not threads(), "a thread outlived its stream"


@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_data_set_larger_than_the_object_store_passes_without_spilling(
    times: int, clips: pd.DataFrame, local_ray: Begin
) -> None:
    store = 80 * 2**20
    local_ray(2, object_store_bytes=store)
    spec = ClipSpec(frames=16, image_size=112, stride=1, eval_windows=1)
    plan = StreamPlan(spec, "eval", batch_size=8, cpus_per_task=0.5)
    rows = times * store // plan.row_bytes() + 1
    many = pd.concat([clips] * (rows // N_VIDEOS + 1), ignore_index=True)
    datasets = clip_datasets(put_clips(many), len(many), plan)
    delivered = sum(len(batch.index) for batch in stream_batches(datasets, plan, "large"))
    assert delivered == len(many)
    # Of this Ray: where a second one runs on the machine, Ray's own search for it gives up.
    assert "Spilled" not in memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)


def test_a_stream_that_waits_for_its_consumer_takes_little_of_the_cpu(clips: pd.DataFrame, local_ray: Begin) -> None:
    # Ray Data's loop runs in the consumer's process, where it competes for the interpreter lock with training.
    local_ray(2, object_store_bytes=80 * 2**20)
    spec = ClipSpec(frames=16, image_size=112, stride=1, eval_windows=1)
    plan = StreamPlan(spec, "train", batch_size=5, epochs=200, cpus_per_task=0.5)
    stream = stream_batches(clip_datasets(put_clips(clips), N_VIDEOS, plan), plan, "full")
    for _ in range(3):
        next(stream)
    shares = []
    for _ in range(10):
        cpu, wall = time.process_time(), time.monotonic()
        time.sleep(1)
        shares.append((time.process_time() - cpu) / (time.monotonic() - wall))
    stream.close()
    # The first seconds fill the store.
    assert np.median(shares[5:]) < 0.3, shares
