"""The limit on clips that the manifest took and that cannot be decoded all the same."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from qray.errors import QrayError
from qray.units.clips import SplitClips, named_failures

CLIPS = pd.DataFrame({"clip": [f"clip-{i}" for i in range(20)]})


def test_as_many_as_may_fail_are_put_up_with() -> None:
    SplitClips(CLIPS, None, 0.1).check("calibration", {3: "gone", 9: "gone"})


def test_more_than_may_fail_are_counted_and_named_with_what_they_were_for() -> None:
    wanted = (
        "3 of 20 clips for calibration could not be decoded, more than data.max_rejected = 0.1 allows: "
        "clip-1: damaged; clip-3: gone; clip-9: gone"
    )
    with pytest.raises(QrayError, match=re.escape(wanted)):
        SplitClips(CLIPS, None, 0.1).check("calibration", {9: "gone", 3: "gone", 1: "damaged"})


def test_five_of_many_are_named() -> None:
    with pytest.raises(QrayError, match=r"clip-4: gone; and 15 more$"):
        SplitClips(CLIPS, None, 0.1).check("training", dict.fromkeys(range(20), "gone"))


def test_where_none_may_fail_one_is_too_many() -> None:
    with pytest.raises(QrayError, match="1 of 20"):
        SplitClips(CLIPS, None, 0.0).check("training", {0: "gone"})


def test_failures_go_by_the_names_of_the_clips() -> None:
    assert named_failures(CLIPS, {2: "b", 1: "a"}) == {"clip-1": "a", "clip-2": "b"}
