"""Splits and digests stay what they are when rows are moved or added, and change when results would."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qray.data.manifest import digest_of, read_manifest
from qray.study import Data

if TYPE_CHECKING:
    from tests.unit.data.conftest import DataSet


@pytest.mark.parametrize(
    ("word", "split"),
    [("train", "TRAIN"), ("Val", "VAL"), ("TEST", "TEST"), ("validation", "VAL"), ("dev", "VAL"), (" test ", "TEST")],
)
def test_splits_are_read_in_any_case(data_set: DataSet, word: str, split: str) -> None:
    data_set.video("a.avi")
    assert data_set.read(("a", 50, word)).clips["split"].tolist() == [split]


def test_an_unknown_split_word_is_rejected_not_guessed(data_set: DataSet) -> None:
    data_set.video("a.avi", "b.avi")
    manifest = data_set.read(("a", 50, "fold-3"), ("b", 50, "TRAIN"))
    assert manifest.rejected["reason"].tolist() == ["Split is 'fold-3', expected TRAIN, VAL or TEST"]


def test_a_drawn_split_does_not_move_when_rows_are_added(data_set: DataSet) -> None:
    few, many = [f"c{i}" for i in range(12)], [f"b{i}" for i in range(12)]
    data_set.video(*(f"{name}.avi" for name in few + many))
    before = data_set.read(*((name, 1) for name in few), header=("FileName", "EF")).clips.set_index("clip")["split"]
    after = data_set.read(*((name, 1) for name in many + few), header=("FileName", "EF")).clips.set_index("clip")[
        "split"
    ]
    assert after[before.index].equals(before)


def test_a_drawn_split_follows_its_seed_and_not_the_spelling_of_the_ending(data_set: DataSet) -> None:
    listed = [f"c{i}" for i in range(30)]
    data_set.video(*(f"{name}.avi" for name in listed))
    plain = data_set.read(*((name, 1) for name in listed), header=("FileName", "EF"))
    ending = data_set.read(*((f"{name}.avi", 1) for name in listed), header=("FileName", "EF"))
    other = data_set.read(*((name, 1) for name in listed), header=("FileName", "EF"), data=Data(split_seed=1))
    assert plain.digest == ending.digest != other.digest


def test_an_empty_split_cell_is_drawn_and_the_others_are_kept(data_set: DataSet) -> None:
    data_set.video("a.avi", "b.avi")
    only_test = Data(split_fractions=(0, 0, 1))
    assert data_set.read(("a", 1, ""), ("b", 1, "VAL"), data=only_test).clips["split"].tolist() == ["TEST", "VAL"]


def test_drawn_splits_have_the_sizes_that_were_asked_for(data_set: DataSet) -> None:
    listed = [f"c{i}" for i in range(200)]
    data_set.video(*(f"{name}.avi" for name in listed))
    counts = data_set.read(*((name, 1) for name in listed), header=("FileName", "EF")).clips["split"].value_counts()
    assert abs(counts["TRAIN"] - 150) < 20
    assert min(counts["VAL"], counts["TEST"]) > 12


def test_the_digest_depends_neither_on_the_place_nor_on_the_order_of_rows(data_set: DataSet, tmp_path: Path) -> None:
    data_set.video("a.avi", "b.avi")
    first = data_set.read(("a", 1, "TRAIN"), ("b", 2, "VAL"))
    shutil.copytree(data_set.root, tmp_path / "copy")
    moved = read_manifest(tmp_path / "copy", Data())
    assert first.digest == moved.digest == data_set.read(("b.avi", "2.0", "val"), ("a", 1, "train")).digest


@pytest.mark.parametrize(
    ("column", "value"), [("clip", "z"), ("target", 3.0), ("split", "TEST"), ("content", "0123456789abcdef")]
)
def test_the_digest_follows_whatever_results_depend_on(data_set: DataSet, column: str, value: object) -> None:
    data_set.video("a.avi", "b.avi")
    clips = data_set.read(("a", 1, "TRAIN"), ("b", 2, "VAL")).clips
    assert digest_of(clips) != digest_of(clips.assign(**{column: value}))
