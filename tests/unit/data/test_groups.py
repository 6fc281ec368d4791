"""Rows of one group, such as a patient, are never on both sides, whoever chose the sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from qray.data.manifest import check_manifest
from qray.data.splits import SPLITS, Side, assign
from qray.errors import QrayError, UsageError
from qray.study import Data

if TYPE_CHECKING:
    from tests.unit.data.conftest import DataSet

GROUPED = Data(group_column="Patient")
HEADER = ("FileName", "EF", "Split", "Patient")


def random_sides(seed: int, given: float) -> list[Side]:
    """Rows of some groups, large and small, spelled in several ways; a share of them with a split."""
    rng = np.random.default_rng(seed)
    groups = ["", "p1", "P1", "Jos\u00e9", "Jose\u0301", *(f"g{number}" for number in range(int(rng.integers(1, 20))))]
    words = [*SPLITS, "train", "dev"]
    return [
        Side(
            line,
            f"clip-{line}",
            str(rng.choice(words)) if rng.random() < given else "",
            str(rng.choice(groups)),
        )
        for line in range(2, int(rng.integers(10, 80)))
    ]


def group_of(side: Side) -> str:
    return side.group.replace("e\u0301", "\u00e9").lower()


@pytest.mark.parametrize("given", [0.0, 0.05, 0.5])
def test_no_group_is_ever_on_two_sides(given: float) -> None:
    for seed in range(60):
        sides = random_sides(seed, given)
        placed: dict[str, set[str]] = {}
        for side, (split, reason) in zip(sides, assign(sides, GROUPED), strict=True):
            assert bool(split) != bool(reason)
            if side.group and split:
                placed.setdefault(group_of(side), set()).add(split)
        assert all(len(splits) == 1 for splits in placed.values())


@pytest.mark.parametrize("given", [0.0, 0.1])
def test_sides_depend_neither_on_the_order_of_rows_nor_on_rows_of_other_groups(given: float) -> None:
    for seed in range(30):
        sides = random_sides(seed, given)
        whole = {side.line: split for side, (split, _) in zip(sides, assign(sides, GROUPED), strict=True)}
        turned = sides[::-1]
        assert {s.line: split for s, (split, _) in zip(turned, assign(turned, GROUPED), strict=True)} == whole
        part = [side for side in sides if group_of(side) in ("", "p1", "g0")]
        assert {s.line: split for s, (split, _) in zip(part, assign(part, GROUPED), strict=True)} == {
            side.line: whole[side.line] for side in part
        }


def test_groups_are_drawn_in_the_shares_that_were_asked_for() -> None:
    sides = [Side(line, f"clip-{line}", "", f"patient-{line // 3}") for line in range(3000)]
    drawn = [split for split, _ in assign(sides, GROUPED)]
    assert drawn.count("TRAIN") / len(drawn) == pytest.approx(0.75, abs=0.05)


def test_a_row_without_a_group_is_drawn_as_if_there_were_no_groups() -> None:
    alone = [Side(line, f"clip-{line}", "", "") for line in range(50)]
    assert assign(alone, GROUPED) == assign(alone, Data())


def test_files_that_share_a_name_but_for_the_ending_are_drawn_together(data_set: DataSet) -> None:
    listed = [f"P{number}{ending}" for number in range(12) for ending in (".avi", ".mp4")]
    data_set.video(*listed)
    clips = data_set.read(*((name, 1) for name in listed), header=("FileName", "EF")).clips
    splits = clips.assign(stem=clips["clip"].str[:-4]).groupby("stem")["split"].nunique()
    assert splits.tolist() == [1] * 12


def test_a_group_that_was_given_a_split_keeps_it(data_set: DataSet) -> None:
    names = [f"c{number}" for number in range(8)]
    data_set.video(*(f"{name}.avi" for name in names))
    rows = [(name, 1, "TEST" if name == "c5" else "", "p") for name in names]
    assert set(data_set.read(*rows, header=HEADER, data=GROUPED).clips["split"]) == {"TEST"}


def test_a_group_on_two_sides_is_rejected_with_both_places(data_set: DataSet) -> None:
    data_set.video("a.avi", "b.avi", "c.avi", "d.avi")
    rows = [("a", 1, "TRAIN", "p"), ("b", 1, "", "p"), ("c", 1, "VAL", "P "), ("d", 1, "VAL", "q")]
    manifest = data_set.read(*rows, header=HEADER, data=GROUPED)
    assert manifest.clips["clip"].tolist() == ["d"]
    assert manifest.rejected["reason"].tolist() == [
        f"Patient {group!r} is in TRAIN (line 2) and VAL (line 4); a group must be on one side" for group in "ppP"
    ]


def test_a_row_that_is_left_out_anyway_puts_no_group_anywhere(data_set: DataSet) -> None:
    data_set.video("a.avi", "b.avi")
    rows = [("a", 1, "TRAIN", "p"), ("b", "bad", "TEST", "p"), ("gone", 1, "VAL", "p")]
    assert data_set.read(*rows, header=HEADER, data=GROUPED).clips["split"].tolist() == ["TRAIN"]


def test_groups_are_not_asked_for_by_default(data_set: DataSet) -> None:
    data_set.video("a.avi", "b.avi")
    rows = [("a", 1, "TRAIN", "p"), ("b", 1, "VAL", "p")]
    assert data_set.read(*rows, header=HEADER).clips["split"].tolist() == ["TRAIN", "VAL"]


def test_a_group_column_that_is_not_there_is_named_by_key_and_line(data_set: DataSet) -> None:
    data_set.video("a.avi")
    with pytest.raises(UsageError, match=r"line 1: no column 'Patient' \(data\.group_column\)"):
        data_set.read(("a", 1, "TRAIN"), data=GROUPED)


def test_the_digest_follows_groups_only_where_they_change_a_side(data_set: DataSet) -> None:
    data_set.video("a.avi", "b.avi")
    given = [("a", 1, "TRAIN", "p"), ("b", 1, "VAL", "q")]
    assert data_set.read(*given, header=HEADER, data=GROUPED).digest == data_set.read(*given, header=HEADER).digest


@pytest.mark.parametrize("folds", ["0123", "3"])
def test_numbered_folds_are_refused_once_with_the_key_that_solves_it(data_set: DataSet, folds: str) -> None:
    data_set.video("a.avi", "b.avi", "c.avi", "d.avi", "e.avi")
    rows = [(name, 1, fold) for name, fold in zip("abcd", folds * 4, strict=False)]
    with pytest.raises(QrayError) as caught:
        check_manifest(data_set.read(*rows, ("e", 1, "TRAIN")), Data())
    assert str(caught.value).count("data.split_column: null") == 1
    with pytest.raises(QrayError) as caught:
        data_set.read(*rows)
    assert str(caught.value).count("data.split_column: null") == 1


def test_numbered_folds_are_drawn_when_the_split_column_is_null(data_set: DataSet) -> None:
    names = [f"c{number}" for number in range(40)]
    data_set.video(*(f"{name}.avi" for name in names))
    rows = [(name, 1, number % 10, f"p{number // 4}") for number, name in enumerate(names)]
    manifest = data_set.read(*rows, header=HEADER, data=Data(split_column=None, group_column="Patient"))
    assert len(manifest.clips) == 40
    assert (manifest.clips["split"].to_numpy().tolist()) != ["TRAIN"] * 40
