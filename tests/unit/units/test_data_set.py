"""What OUT keeps of the data set, so that a model card can name it when the videos are gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qray.data.probe import Probe
from qray.graph.store import Store
from qray.study import Data
from qray.units.data_set import PROBES, load_manifest


def record(store: Store) -> dict[str, object]:
    (path,) = (store.out / "units").glob("data-*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_manifest_leaves_its_digest_and_counts(tiny_dataset: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    manifest = load_manifest(store, tiny_dataset, Data(dir=str(tiny_dataset)))
    splits = record(store)["splits"]
    assert isinstance(splits, dict)
    counts = {name: facts["clips"] for name, facts in splits.items()}
    assert (record(store)["digest"], counts) == (manifest.digest, {"TRAIN": 24, "VAL": 10, "TEST": 12})


def test_the_range_of_targets_is_that_of_the_split(tiny_dataset: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    target = load_manifest(store, tiny_dataset, Data(dir=str(tiny_dataset))).split("VAL")["target"]
    facts = record(store)["splits"]["VAL"]  # type: ignore[index]
    assert (facts["min"], facts["mean"], facts["max"]) == pytest.approx((target.min(), target.mean(), target.max()))


def test_a_changed_data_set_takes_the_place_of_the_one_before(tiny_dataset: Path, tmp_path: Path) -> None:
    store, copy = Store(tmp_path / "out"), Path(shutil.copytree(tiny_dataset, tmp_path / "set"))
    load_manifest(store, copy, Data(dir=str(copy)))
    listed = (copy / "FileList.csv").read_text(encoding="utf-8").splitlines()
    (copy / "FileList.csv").write_text("\n".join(listed[:-1]) + "\n", encoding="utf-8")
    manifest = load_manifest(store, copy, Data(dir=str(copy)))
    assert record(store)["digest"] == manifest.digest


def test_facts_that_another_version_left_are_read_anew(tiny_dataset: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    fresh = load_manifest(store, tiny_dataset, Data(dir=str(tiny_dataset)))
    cache = tmp_path / "units" / "probes.parquet"
    facts = pq.read_table(cache).to_pylist()
    # As facts were kept before their keys told the version: name, size and time.
    old = [fact | {"key": fact["key"].rpartition("|")[0], "n_frames": 1} for fact in facts]
    pq.write_table(pa.Table.from_pylist(old, PROBES), cache)
    assert load_manifest(store, tiny_dataset, Data(dir=str(tiny_dataset))).clips.equals(fresh.clips)


@pytest.mark.parametrize("broken", [b"", b"PAR1", b'{"a": 1}'])
def test_facts_that_cannot_be_read_are_read_anew(broken: bytes, tiny_dataset: Path, tmp_path: Path) -> None:
    cache = tmp_path / "units" / "probes.parquet"
    cache.parent.mkdir()
    cache.write_bytes(broken)
    read = load_manifest(Store(tmp_path), tiny_dataset, Data(dir=str(tiny_dataset)))
    assert len(pq.read_table(cache)) == len(read.clips) == 46


def test_facts_of_files_outlive_the_run(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(dir=str(tiny_dataset))
    fresh = load_manifest(Store(tmp_path), tiny_dataset, data)

    def judged(paths: Sequence[str], at_a_time: int) -> Iterator[tuple[str, Probe]]:
        assert not paths
        yield from ()

    monkeypatch.setattr("qray.data.manifest.probe_files", judged)
    again = load_manifest(Store(tmp_path), tiny_dataset, data)
    assert again.clips.equals(fresh.clips)
    assert again.probes == fresh.probes
