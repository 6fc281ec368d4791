"""What ran where: units on the run's clock, idle spans, and units of earlier runs."""

from __future__ import annotations

from typing import Any

import pytest

from qray.judge.timing import Timing
from qray.report.timeline import spans, timeline_of, timeline_plot

START = 1_000_000.0


def unit(kind: str, begin: float, seconds: float, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "label": f"{kind} x", "started": START + begin, "seconds": seconds} | more


def timing(total: float) -> Timing:
    return Timing({}, total, START, ())


def test_time_counts_from_the_beginning_of_the_run() -> None:
    found = timeline_of([unit("train", 10, 20)], timing(40))
    assert found is not None
    assert (found.bars[0].begin, found.bars[0].end, found.length) == (10, 30, 40)


def test_time_that_no_unit_covers_is_idle() -> None:
    found = timeline_of([unit("train", 10, 20), unit("build", 25, 10), unit("evaluate", 50, 5)], timing(60))
    assert found is not None
    assert found.idle == ((0, 10), (35, 50), (55, 60))
    assert found.idle_seconds == 30


def test_a_unit_inside_another_ends_no_work() -> None:
    found = timeline_of([unit("train", 0, 50), unit("evaluate", 10, 5)], timing(50))
    assert found is not None
    assert found.idle == ()


def test_units_of_earlier_runs_are_counted_and_not_drawn() -> None:
    found = timeline_of([unit("train", -500, 20), unit("evaluate", 5, 5)], timing(20))
    assert found is not None
    assert [bar.kind for bar in found.bars] == ["evaluate"]
    assert found.earlier == 1


def test_a_unit_that_does_not_say_when_it_ran_is_not_drawn() -> None:
    assert timeline_of([{"kind": "trial", "seconds": 5.0}], timing(20)) is None


KINDS = ("layers", "sensitivity", "memory", "trial", "measure", "costs", "validate", "of-tomorrow")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_unit_is_work_and_not_idle_time(kind: str) -> None:
    found = timeline_of([unit(kind, 0, 20)], timing(20))
    assert found is not None
    assert ([bar.kind for bar in found.bars], found.idle) == ([kind], ())


def test_a_kind_that_nobody_knows_is_drawn_as_itself() -> None:
    found = timeline_of([unit("of-tomorrow", 0, 20), unit("layers", 0, 5)], timing(20))
    assert found is not None
    assert spans(found) == [("of-tomorrow", 1, 20.0), ("sensitivity", 1, 5.0)]
    assert "of-tomorrow 20 s" in timeline_plot(found).alt


def test_without_a_record_of_the_run_all_units_are_drawn() -> None:
    found = timeline_of([unit("train", 0, 20), unit("build", 30, 5)], None)
    assert found is not None
    assert (len(found.bars), found.length) == (2, 35)


@pytest.mark.parametrize("begun", [None, "yesterday", True])
def test_a_record_of_another_make_is_left_out(begun: object) -> None:
    assert timeline_of([unit("train", 0, 1) | {"started": begun}], timing(20)) is None
