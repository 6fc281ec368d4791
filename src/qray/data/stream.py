"""The Ray Data pipelines that feed training and evaluation; only this module and `pacing` import ray.data.

Rows are numbered: row i of a training stream is position i % n of epoch i // n, so that a decode task needs nothing
but its row numbers and the manifest, which travels once through the object store.
"""

from __future__ import annotations

import queue
import re
import socket
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
import ray.data
from ray.data import ReadTask
from ray.data.block import BlockMetadata

from qray.data.blocks import block_sizes, parts
from qray.data.decode import ClipError, decode_frames, evaluation_indices, training_indices
from qray.data.pacing import Pace
from qray.data.stream_plan import Batch, StreamPlan, permutation
from qray.errors import QrayError
from qray.graph.telemetry import Feed
from qray.malloc import few_arenas
from qray.storage.cache import local_copy

#: Largest block of decoded clips; larger clips mean fewer of them per task.
BLOCK_BYTES = 32 * 2**20
#: Share of the object store that one stream may fill: several streams live at once.
STORE_SHARE = 0.2
#: Share of the object store that a data set may keep for itself; VAL and TEST do so when they are small enough.
CACHE_SHARE = 0.15
#: Decode tasks of a dataset at most: so many, or so many for each that runs at a time. What it takes to go on with the
#: next is under a hundredth of the time of these.
TASKS_PER_DATASET, TASKS_PER_SLOT = 1000, 32
PREFETCH_BATCHES = 4
#: How long a stream that ends waits for each of its threads, s; they take a fraction of a second.
END_TIMEOUT_S = 10.0


class StreamStalled(QrayError):
    """A stream delivered nothing for longer than its time limit."""


@dataclass(frozen=True)
class _DecodeRows:
    """The map function of both pipelines: row numbers -> decoded clips, with a reason beside each clip that failed."""

    plan: StreamPlan
    clips: ray.ObjectRef[Any]

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        few_arenas()
        # Views of the object store: a task costs the same however many clips there are.
        paths, n_frames = ray.get(self.clips)
        plan, spec = self.plan, self.plan.spec
        per_epoch = plan.rows_per_epoch(len(paths))
        windows = spec.windows if plan.mode == "eval" else 1
        numbers = rows["id"]
        frames = np.zeros((len(numbers), windows, spec.frames, spec.image_size, spec.image_size, 3), np.uint8)
        index = np.empty(len(numbers), np.int64)
        errors = [""] * len(numbers)
        for at, number in enumerate(numbers):
            epoch, position = divmod(int(number), per_epoch)
            epoch += plan.first_epoch
            if position >= len(paths):
                index[at] = -1
                continue
            if plan.mode == "train":
                clip = int(permutation(len(paths), plan.seed, epoch)[position])
                rng = np.random.default_rng((plan.seed, epoch, clip))
                wanted = training_indices(int(n_frames[clip]), spec, rng)
            else:
                clip = position
                wanted = evaluation_indices(int(n_frames[clip]), spec)
            index[at] = clip
            try:
                with local_copy(paths[clip].as_py()) as path:
                    frames[at] = decode_frames(path, wanted, spec.image_size)
            except ClipError as error:
                errors[at] = f"{error} (on {socket.gethostname()})"
        # Object arrays of str become Arrow strings; the tensor column becomes uint8 ArrowTensorTypeV2.
        return {"frames": frames, "index": index, "error": np.array(errors, dtype=object)}


class _RowNumbers(ray.data.Datasource):
    """Numbers from `first` on in column `id`, in blocks: for each size in turn a block of so many rows of each shard,
    whose numbers are `shards` apart; with one shard, consecutive ones.

    `ray.data.range` would do, but its tasks ask for a whole CPU, whatever the tasks after them ask for: on a cluster
    cut into fractions of a CPU they wait for ever, and they are not fused with decoding.
    """

    def __init__(self, first: int, sizes: list[int], shards: int = 1) -> None:
        super().__init__()
        self.first, self.sizes, self.shards = first, sizes, shards

    def get_name(self) -> str:
        """What tasks are called that read it, after "Read"."""
        return "ClipNumbers"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all numbers."""
        return 8 * sum(self.sizes) * self.shards

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task a block."""
        blocks = zip(self.sizes, accumulate(self.sizes), strict=True)
        return [
            ReadTask(
                partial(_numbers, self.first + (end - size) * self.shards + shard, size, self.shards),
                BlockMetadata(size, size_bytes=8 * size, exec_stats=None),
            )
            for size, end in blocks
            for shard in range(self.shards)
        ]


def _numbers(first: int, count: int, step: int) -> list[pa.Table]:
    return [pa.table({"id": np.arange(first, first + count * step, step)})]


def put_clips(clips: pd.DataFrame) -> ray.ObjectRef[Any]:
    """Put what decode tasks need to know of the clips into the object store, once for any number of streams."""
    return ray.put((pa.array(clips["path"].tolist(), pa.large_string()), clips["n_frames"].to_numpy(np.int64)))


def clip_datasets(
    clips_ref: ray.ObjectRef[Any], n_clips: int, plan: StreamPlan, name: str = "clips"
) -> Iterator[ray.data.Dataset]:
    """Lazy datasets of decoded clips that make up a stream, one after the other, in a fixed order whatever the timing
    of their tasks. name: what the dashboard calls them and these.

    Before its first task Ray Data puts every task of a dataset into the object store, and it keeps figures of each to
    the end: one dataset for a long stream would begin late, and grow without end.

    Of a plan with several shards there is one, which workers share from beginning to end: its blocks belong to each in
    turn, all of a turn of the same size: that is how `streaming_split(shards, equal=True)` gives them out, to whoever
    has the fewest rows.

    Decoding runs as tasks of `plan.cpus_per_task` CPUs. Nothing that consumes the stream may hold every CPU of the
    cluster, or the tasks would wait for ever: sessions leave a slot free (graph.session.Slots).
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A thread in every task that reads the process's memory maps: it costs a tenth of the throughput.
    context.memory_usage_poll_interval_s = None
    context.custom_execution_callback_classes = [Pace]
    # A dataset keeps its id where it is unpickled.
    context.use_legacy_dataset_ids = True
    context.execution_options.preserve_order = True
    store = ray.cluster_resources().get("object_store_memory", 2**30)
    limits = context.execution_options.resource_limits.copy(object_store_memory=STORE_SHARE * store)
    context.execution_options.resource_limits = limits
    total = plan.rows_per_epoch(n_clips) * (plan.epochs - plan.first_epoch if plan.mode == "train" else 1)
    most = max(1, min(BLOCK_BYTES, int(STORE_SHARE * store / 8)) // plan.row_bytes())
    parallel = max(1, int(ray.cluster_resources().get("CPU", 1) / plan.cpus_per_task))
    if plan.shards > 1:
        # A block that a task cuts in two would be two shards'.
        context.target_max_block_size = None
    rows = _DecodeRows(plan, clips_ref)

    def decode(numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return rows(numbers)

    # Ray Data calls its tasks after the function.
    decode.__name__ = f"decode {name}"
    longest = most * max(TASKS_PER_DATASET, TASKS_PER_SLOT * parallel) if plan.shards == 1 else total
    for part in parts(total, plan.shard_rows(n_clips) * plan.shards, longest):
        sizes = block_sizes(len(part) // plan.shards, plan.shard_rows(n_clips), most, parallel)
        numbers = ray.data.read_datasource(
            _RowNumbers(part.start, sizes, plan.shards), num_cpus=plan.cpus_per_task,
            override_num_blocks=len(sizes) * plan.shards,
        )  # fmt: skip
        dataset = numbers.map_batches(decode, batch_size=None, num_cpus=plan.cpus_per_task, zero_copy_batch=True)
        _call(dataset, name)
        yield dataset


def cached(datasets: Iterable[ray.data.Dataset], n_rows: int, plan: StreamPlan) -> list[ray.data.Dataset] | None:
    """Datasets decoded once and kept in the object store, or None where that does not fit beside everything else."""
    store = ray.cluster_resources().get("object_store_memory", 0)
    fits = n_rows * plan.row_bytes() <= CACHE_SHARE * store
    return [dataset.materialize() for dataset in datasets] if fits else None


def cluster_state() -> str:
    """What the cluster has and what of it is free, for a diagnosis."""
    have, free = ray.cluster_resources(), ray.available_resources()
    return (
        f"CPUs: {free.get('CPU', 0):g} free of {have.get('CPU', 0):g}; GPUs: {free.get('GPU', 0):g} free of "
        f"{have.get('GPU', 0):g}; object store: {free.get('object_store_memory', 0) / 2**20:.0f} MiB free of "
        f"{have.get('object_store_memory', 0) / 2**20:.0f}; the Ray dashboard lists the waiting tasks"
    )


def dashboard_name(name: str) -> str:
    """The name under which the dashboard lists a stream, and of its log file."""
    return re.sub(r"[^\w.-]", "-", name)


def _call(dataset: ray.data.Dataset, name: str) -> None:
    """Give a dataset that is to be executed the name under which the dashboard lists it: a line for all of a run that
    have this name.

    Ray Data would give each execution an id of its own, and Ray keeps a few hundred figures of each id to the end,
    half a MiB in each of two processes. Nothing public sets it.
    """
    dataset.set_name(dashboard_name(name))
    dataset._set_uuid(ray.get_runtime_context().get_job_id())
    dataset._run_index = -1


def stream_batches(
    datasets: Iterable[ray.data.Dataset | ray.data.DataIterator], plan: StreamPlan, name: str, rows: int | None = None
) -> Generator[Batch, None, None]:
    """Deliver the batches of datasets, or of a worker's shard of one, decoding ahead in the background.

    rows: in a batch, by default those of the plan.

    Raises:
        StreamStalled: nothing came for `plan.timeout_s`; the message says what the cluster was doing.
    """
    tag = dashboard_name(name)
    others = threading.enumerate()
    ahead: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=PREFETCH_BATCHES)
    closed = threading.Event()

    def offer(item: Batch | BaseException | None) -> bool:
        while not closed.is_set():
            with suppress(queue.Full):
                ahead.put(item, timeout=0.5)
                return True
        return False

    def produce() -> None:
        try:
            size = rows or plan.batch_size
            for dataset in datasets:
                if closed.is_set():
                    return
                if isinstance(dataset, ray.data.Dataset):
                    _call(dataset, name)
                for row in dataset.iter_batches(batch_size=size, batch_format="numpy", prefetch_batches=2):
                    # Ray hands out views of shared memory, which PyTorch may not write to and which pin the block.
                    errors = [str(error) for error in row["error"]]
                    if not offer(Batch(np.array(row["frames"], np.uint8), np.array(row["index"], np.int64), errors)):
                        return
            offer(None)
        except BaseException as error:
            offer(error)

    few_arenas()
    thread = threading.Thread(target=produce, name=f"stream-{name}", daemon=True)
    thread.start()
    feed = Feed(name)
    try:
        while True:
            asked = time.monotonic()
            try:
                item = ahead.get(timeout=plan.timeout_s)
            except queue.Empty:
                raise StreamStalled(
                    f"stream {name}: no batch for {plan.timeout_s:.0f} s. {cluster_state()}. If no CPU is free, "
                    "something holds those that decoding needs; if storage is slow, raise evaluation.batch_timeout_s"
                ) from None
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            feed.delivered(time.monotonic() - asked, ahead.qsize())
            yield item
    finally:
        feed.end()
        closed.set()
        _end_threads(thread, tag, others)


def _end_threads(producer: threading.Thread, tag: str, others: Sequence[threading.Thread]) -> None:
    """Wait for the end of a stream's thread, of the one in which Ray Data executes the dataset of this name, and of
    those in which it reads batches, which are not among the `others` that were there before.

    The stream's own may be waiting for a batch that never comes, and nothing public ends that wait. Were one of them
    still at work when Ray ends, its next call would start another Ray, or end the process.
    """
    executors = [t for t in threading.enumerate() if t.name.startswith(f"StreamingExecutor-{tag}_")]
    if producer.is_alive():
        for executor in executors:
            executor.shutdown(force=True)  # type: ignore[attr-defined]
    readers = [t for t in threading.enumerate() if t.name.startswith("iter_threaded") and t not in others]
    for thread in (producer, *executors, *readers):
        thread.join(END_TIMEOUT_S)
