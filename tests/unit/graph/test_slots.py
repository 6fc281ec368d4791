"""What a cluster is said to lack for work that takes several slots at once."""

from __future__ import annotations

import pytest

from qray.graph.session import Slots
from qray.graph.unit import Resources


def workers(n: int, gpu: bool = True) -> Resources:
    return Resources(slots=n, whole=True, gpu=gpu)


@pytest.mark.parametrize(("cpus", "most"), [(1, 3), (2, 3), (4, 3), (8, 7)])
def test_one_slot_is_left_for_the_decoding_that_feeds_them(cpus: int, most: int) -> None:
    slots = Slots(cpus, 0)
    assert slots.lacking(workers(most)) is None
    lacking = slots.lacking(workers(most + 1)) or ""
    assert f"take {most + 2} slots" in lacking
    assert f"has {most + 1} ({cpus} CPUs)" in lacking


def test_each_takes_a_gpu_where_there_are_any() -> None:
    assert Slots(8, 2).lacking(workers(2)) is None
    assert Slots(8, 2).lacking(workers(4)) == "4 at once take a GPU each, and this Ray has 2"
    assert Slots(8, 2).lacking(workers(4, gpu=False)) is None


def test_what_can_do_with_fewer_lacks_nothing() -> None:
    assert Slots(1, 0).lacking(Resources(slots=9)) is None
