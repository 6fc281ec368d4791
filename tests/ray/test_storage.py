"""A run whose data and OUT lie in an object store: as in folders, also after a kill and on another machine; and a
stream through a cache that is smaller than its data."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.caches import held_bytes
from support.runs import TINY, Finished, environment, kill, predictions, qray, start, unit_times, wait_until
from support.s3 import Server, client, serving

from qray.data.manifest import read_manifest
from qray.data.probing import end_probing
from qray.data.stream import clip_datasets, put_clips, stream_batches
from qray.data.stream_plan import StreamPlan
from qray.storage import cache
from qray.study import ClipSpec, Data

MiB = 2**20
#: Of the tiny study what FP32 needs: the same units, by the same keys.
FP32 = ("--set", "variants=[{name: fp32, method: fp32, engine: eager}]", "--set", "sweep=null", "--num-cpus", 2)
#: Of the data set's 23 MB; a clip has half a MB.
LIMIT = 3 * MiB


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def data(server: Server, tiny_dataset: Path) -> str:
    """The URI of the tiny data set."""
    return server.upload(tiny_dataset, "set")


def test_a_stream_through_a_small_cache_delivers_the_same_and_keeps_to_its_limit(
    data: str, server: Server, tiny_dataset: Path, local_ray: Callable[..., None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in client(tmp_path, QRAY_CACHE_GB=str(LIMIT / 2**30)).items():
        monkeypatch.setenv(name, value)
    cache.cache_folder.cache_clear()
    end_probing()
    # A number that no other test asks for: its workers have this environment.
    local_ray(3)
    most, over, kept = 0, threading.Event(), cache.Cache(tmp_path / "data", LIMIT)

    def watch() -> None:
        nonlocal most
        while not over.wait(0.01):
            most = max(most, held_bytes(kept))

    watcher = threading.Thread(target=watch)
    watcher.start()
    spec = ClipSpec(frames=4, image_size=32, stride=2, eval_windows=2)
    plan = StreamPlan(spec, "train", 8, epochs=2, cpus_per_task=0.5, timeout_s=150)
    found = []
    try:
        for root in (server.place("set"), tiny_dataset):
            manifest = read_manifest(root, Data())
            clips = manifest.split("TRAIN")
            batches = list(stream_batches(clip_datasets(put_clips(clips), len(clips), plan), plan, "storage"))
            found.append((manifest.digest, clips.drop(columns="path"), batches))
    finally:
        over.set()
        watcher.join()
        end_probing()
        cache.cache_folder.cache_clear()
    (digest, clips, batches), (own_digest, own_clips, own) = found
    assert digest == own_digest
    pd.testing.assert_frame_equal(clips, own_clips)
    assert len(batches) == len(own) == 6
    for batch, wanted in zip(batches, own, strict=True):
        assert batch.errors == [""] * 8
        np.testing.assert_array_equal(batch.frames, wanted.frames)
    assert 0.5 * LIMIT < most <= LIMIT


@dataclass(frozen=True)
class Moved:
    """A run that was killed on one machine and went on on another, while a third asked for the same OUT. kept: names
    in the store when it was killed."""

    kept: set[str]
    refused: Finished
    done: Finished
    out: str
    #: The second's copy of OUT.
    copy: Path


@pytest.fixture(scope="module")
def moved(server: Server, data: str, tmp_path_factory: pytest.TempPathFactory) -> Moved:
    root, out = tmp_path_factory.mktemp("machines"), server.uri("runs/tiny")
    command = ("run", "evaluate", "--study", TINY, "--data", data, "--out", out, *FP32)
    machine = {name: environment(**client(root / name)) for name in "abc"}
    first = start(*command, env=machine["a"])

    def reached() -> bool:
        return first.poll() is not None or any(name.startswith("checkpoints/") for name in server.names("runs/tiny"))

    wait_until(reached, "a checkpoint in the store", every_s=0.5)
    assert first.poll() is None, first.communicate()
    kill(first)
    kept = server.names("runs/tiny")
    second = start(*command, env=machine["b"])
    (copy,) = _wait_for_copy(root / "b", second)
    refused = qray(*command, env=machine["c"])
    words = second.communicate()
    return Moved(kept, refused, Finished(second.returncode, *words), out, copy)


def _wait_for_copy(folder: Path, run: object) -> list[Path]:
    """The copy of OUT on a machine, once its run has begun."""
    wait_until(lambda: run.poll() is not None or any((folder / "out").glob("*/run.json")), "run.json")  # type: ignore[attr-defined]
    return list((folder / "out").glob("*"))


@pytest.mark.slow
def test_a_run_goes_on_on_another_machine_from_what_was_in_the_store(moved: Moved) -> None:
    assert moved.done.code == 0, moved.done.stderr
    epochs = [int(name.removesuffix(".pt")[-4:]) + 1 for name in moved.kept if name.startswith("checkpoints/")]
    assert epochs, moved.kept
    for epoch in range(1, max(epochs) + 1):
        assert f"train fp32: epoch {epoch}/3" not in moved.done.stderr, "an epoch was trained again"


@pytest.mark.slow
def test_its_predictions_are_those_of_a_run_in_folders_to_the_last_bit(
    moved: Moved, whole_run: Callable[[int], tuple[Path, Finished]], server: Server
) -> None:
    local = whole_run(2)[0]
    pd.testing.assert_series_equal(predictions(moved.copy, "fp32"), predictions(local, "fp32"), check_exact=True)
    for kind in ("train", "build", "evaluate"):
        mine = {name for name in unit_times(moved.copy) if name.startswith(kind)}
        assert mine <= unit_times(local).keys(), "another key"
        assert {f"units/{name}" for name in mine} <= server.names("runs/tiny"), "not in the store"


@pytest.mark.slow
def test_a_second_run_on_the_same_out_is_refused_and_told_of_the_first(moved: Moved) -> None:
    assert moved.refused.code == 1
    assert f"{moved.out.partition('?')[0]}" in moved.refused.stderr
    assert "is being written to by `qray run evaluate" in moved.refused.stderr


@pytest.mark.slow
def test_others_read_it_by_its_uri(moved: Moved, tmp_path: Path) -> None:
    shown = qray("show", moved.out, env=environment(**client(tmp_path)))
    assert shown.code == 0, shown.stderr
    assert "fp32" in shown.stdout
    assert not list(tmp_path.rglob("*.parquet")), "it left its copy"


@pytest.mark.slow
def test_no_credentials_are_written_and_none_are_said(moved: Moved) -> None:
    secret = os.fsencode(client(Path())["AWS_SECRET_ACCESS_KEY"])
    for path in moved.copy.parents[1].rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes(), path
    assert secret.decode() not in moved.done.stderr + moved.done.stdout + moved.refused.stderr
