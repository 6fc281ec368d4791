"""Clips per second of a Ray Data stream against a bare multi-process decode loop on the same cores, interleaved: on one
node with as many CPUs as there are cores, and on four logical nodes, whose blocks travel to that of the consumer.

Run it on a quiet machine: pytest -s tests/benchmarks/test_stream_throughput.py
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
from ray.cluster_utils import Cluster
from support.bare_decode import SPEC, decode_chunk

from qray.data.stream import clip_datasets, put_clips, stream_batches
from qray.data.stream_plan import StreamPlan
from qray.graph.session import Slots
from qray.synthetic.generate import synthesize

LEAST_SHARE = 0.85
ROUNDS, CLIPS, EPOCHS, BATCH = 3, 240, 40, 16
#: Of each of four nodes; a node of 4 GB has as much. `Cluster` would give 150 MB, in which decoding has to wait.
STORE_BYTES = 2**30


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The clips of a synthetic set, as the manifest gives them."""
    from qray.data.manifest import read_manifest
    from qray.study import Data

    root: Path = tmp_path_factory.mktemp("echo") / "set"
    synthesize(root, {"TRAIN": CLIPS, "VAL": 1, "TEST": 1}, seed=0)
    return read_manifest(root, Data()).split("TRAIN")


def _consume(batches: Iterator[np.ndarray]) -> float:
    """Clips per second, from the call to the last batch; every batch is copied, as a training task does."""
    began, seen = time.perf_counter(), 0
    for batch in batches:
        seen += len(np.array(batch))
    return seen / (time.perf_counter() - began)


def _bare(pool: object, clips: pd.DataFrame, batch: int) -> Iterator[np.ndarray]:
    chunks = []
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(clips))
        for at in range(0, len(order), 3 * batch):
            part = clips.iloc[order[at : at + 3 * batch]]
            chunks.append((part["path"].tolist(), part["n_frames"].to_numpy(), epoch + at))
    for decoded in pool.imap(decode_chunk, chunks):  # type: ignore[attr-defined]
        for at in range(0, len(decoded), batch):
            yield decoded[at : at + batch]


def _stream(ref: object, n: int, seed: int, slot: float) -> Iterator[np.ndarray]:
    plan = StreamPlan(SPEC, "train", BATCH, seed=seed, epochs=EPOCHS, cpus_per_task=slot)
    for batch in stream_batches(clip_datasets(ref, n, plan), plan, "benchmark"):
        yield batch.frames


@contextmanager
def one_node() -> Iterator[float]:
    """As many logical CPUs as there are cores; yields those."""
    cores = len(os.sched_getaffinity(0))
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield cores
    finally:
        ray.shutdown()


@contextmanager
def four_nodes() -> Iterator[float]:
    """Four nodes of one logical CPU, or of what makes as many together as there are cores."""
    each = max(1, len(os.sched_getaffinity(0)) // 4)
    node = {"num_cpus": each, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        for _ in range(3):
            cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield 4 * each
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.parametrize("nodes", [one_node, four_nodes])
def test_the_stream_keeps_up_with_a_bare_decode_loop(
    nodes: Callable[[], AbstractContextManager[float]], clips: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cores = len(os.sched_getaffinity(0))
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with nodes() as cpus, get_context("spawn").Pool(cores) as pool:
        slot, ref = Slots(cpus, 0).slot_cpus, put_clips(clips)
        # Both start their processes before the clock does.
        _consume(_bare(pool, clips, BATCH))
        _consume(_stream(ref, len(clips), 99, slot))
        ratios = []
        for number in range(ROUNDS):
            bare = _consume(_bare(pool, clips, BATCH))
            streamed = _consume(_stream(ref, len(clips), number, slot))
            ratios.append(streamed / bare)
            print(
                f"\nround {number}: stream {streamed:.0f}, bare loop {bare:.0f} clips/s, ratio {ratios[-1]:.2f}", end=""
            )
        print(
            f"\n{nodes.__name__}: median ratio {np.median(ratios):.2f} on {cores} cores, {CLIPS * EPOCHS} clips a round"
        )
    assert np.median(ratios) >= LEAST_SHARE
