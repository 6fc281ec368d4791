"""The store: what counts as finished, and what a resumed run may therefore trust."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qray.atomic import write_json
from qray.graph.store import Store, pack_folder, unpack_folder
from qray.judge.clips import read_predictions

EMPTY = np.empty(0, np.uint8)
CLIPS = pd.DataFrame({"clip": ["a", "b"], "target": [50.0, 60.0]})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")


def test_a_unit_that_was_put_is_finished(store: Store) -> None:
    store.put("train", "k", {"loss": 1.0})
    assert store.get("train", "k") == {"loss": 1.0}


def test_a_unit_that_was_never_put_is_unfinished(store: Store) -> None:
    assert store.get("train", "k") is None


@pytest.mark.parametrize("content", [b"", b'{"loss": 1', b"[1]", b"\xff\xfe", b"null"])
def test_a_half_written_or_unreadable_record_is_unfinished(store: Store, content: bytes) -> None:
    store.put("train", "k", {})
    store.unit_path("train", "k").write_bytes(content)
    assert store.get("train", "k") is None


def test_a_unit_whose_files_are_gone_is_unfinished(store: Store) -> None:
    folder = store.save_artifact("k", {name: np.frombuffer(b"{}", np.uint8) for name in ("model.bin", "artifact.json")})
    store.put("build", "k", {"files": [store.relative(folder / name) for name in ("model.bin", "artifact.json")]})
    (folder / "model.bin").unlink()
    assert store.get("build", "k") is None


def test_kinds_do_not_share_keys(store: Store) -> None:
    store.put("train", "k", {})
    assert store.get("build", "k") is None


def test_a_folder_travels_unchanged(tmp_path: Path) -> None:
    files = {"a.bin": b"\0\xff", "sub/b.txt": b"x", "empty": b""}
    unpack_folder({name: np.frombuffer(data, np.uint8) for name, data in files.items()}, tmp_path / "there")
    assert {name: data.tobytes() for name, data in pack_folder(tmp_path / "there").items()} == files


def test_a_packed_folder_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    """Ray writes arrays, but nothing else, into its object store as they are."""
    (tmp_path / "model.bin").write_bytes(bytes(range(256)) * 4096)
    packed = pack_folder(tmp_path)
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(packed, protocol=5, buffer_callback=buffers.append)
    assert len(pickled) < 1024
    assert [buffer.raw().nbytes for buffer in buffers] == [1 << 20]
    assert isinstance(packed["model.bin"].base, np.memmap)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x"])
def test_a_file_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leads out"):
        unpack_folder({name: EMPTY}, tmp_path / "there")


def test_an_artifact_of_which_a_file_is_refused_leaves_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="leads out"):
        store.save_artifact("k", {"good": EMPTY, "../bad": EMPTY})
    assert list((store.out / "artifacts").iterdir()) == []


def test_predictions_read_back_in_order_with_failed_clips_as_nan(store: Store) -> None:
    path = store.save_predictions("k", "TEST", CLIPS, np.array([51.5, np.nan]), 0)
    frame = read_predictions(store.out, store.relative(path))
    assert frame["clip"].tolist() == ["a", "b"]
    assert np.isnan(frame["prediction"]).tolist() == [False, True]


def test_damaged_predictions_are_named(store: Store) -> None:
    path = store.save_predictions("k", "TEST", CLIPS, np.array([51.5, 60.0]), 0)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"predictions/variant=k/test\.parquet cannot be read"):
        read_predictions(store.out, store.relative(path))


def test_only_the_newest_checkpoint_is_kept(store: Store) -> None:
    for epoch in range(12):
        store.save_checkpoint("k", epoch, b"%d" % epoch)
    assert [path.name for path in (store.out / "checkpoints" / "k").iterdir()] == ["epoch-0011.pt"]


def test_the_latest_checkpoint_is_the_newest(store: Store) -> None:
    for epoch in (8, 9, 10):
        store.save_checkpoint("k", epoch, b"%d" % epoch)
    assert bytes(store.latest_checkpoint("k")) == b"10"


def test_a_training_that_never_ended_an_epoch_has_no_checkpoint(store: Store) -> None:
    assert store.latest_checkpoint("k") is None


@pytest.fixture
def shown(store: Store) -> Store:
    """OUT with a report, of which the store says that it is of what else is there."""
    store.put("evaluate", "k", {"mae": 1.0})
    store.save_predictions("k", "TEST", CLIPS, np.array([51.5, 60.0]), 0)
    (store.out / "report").mkdir()
    for name in ("study.yaml", "results.parquet", "report.html", "report/plot.png"):
        (store.out / name).write_text(name)
    write_json(store.out / "run.json", {"stage": "all", "started": 1.0, "variants": ["a"]})
    store.set_shown()
    return store


def test_what_was_shown_need_not_be_made_again(shown: Store) -> None:
    write_json(shown.out / "run.json", {"stage": "evaluate", "started": 2.0, "variants": ["a"]})
    (shown.out / "units" / "probes.parquet").write_bytes(b"")
    assert shown.is_shown()


@pytest.mark.parametrize(
    "name", ["study.yaml", "run.json", "results.parquet", "report.html", "report/plot.png", "units/evaluate-k.json",
             "predictions/variant=k/test.parquet"],
)  # fmt: skip
def test_what_was_changed_or_removed_is_shown_anew(shown: Store, name: str) -> None:
    (shown.out / name).write_text('{"variants": ["b"]}')
    assert not shown.is_shown()
    (shown.out / name).unlink()
    assert not shown.is_shown()


def test_other_code_shows_anew(shown: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("qray.__file__", str(tmp_path / "__init__.py"))
    assert not shown.is_shown()


def test_a_run_that_never_ended_has_shown_nothing(store: Store) -> None:
    assert not store.is_shown()
