"""Peak memory is that of a process which holds one artifact and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.shelf import Shelf

from qray.errors import QrayError
from qray.measure.memory import measure_memory
from qray.point import Point

POINT = Point(threads=1, batch=1)


@pytest.fixture(scope="module")
def peaks(shelf: Shelf) -> dict[str, float]:
    """Peak MiB by variant."""
    return {name: measure_memory(shelf[name].folder, POINT, 120) for name in ("fp32", "ptq-onnxruntime")}


def test_the_figure_is_mebibytes_of_a_process(peaks: dict[str, float]) -> None:
    assert all(20 < peak < 4000 for peak in peaks.values())


def test_an_engine_of_its_own_does_not_pay_for_torch(peaks: dict[str, float]) -> None:
    assert peaks["ptq-onnxruntime"] < 0.7 * peaks["fp32"]


def test_the_figure_does_not_depend_on_who_asks(shelf: Shelf, peaks: dict[str, float]) -> None:
    """Linux hands a process's peak on to those that it starts, unless the figure is taken with care."""
    ballast = bytearray(2 * int(peaks["ptq-onnxruntime"] * 2**20))
    ballast[::4096] = b"1" * len(ballast[::4096])
    assert measure_memory(shelf["ptq-onnxruntime"].folder, POINT, 120) == pytest.approx(
        peaks["ptq-onnxruntime"], rel=0.2
    )


def test_what_is_no_artifact_has_no_figure(tmp_path: Path) -> None:
    with pytest.raises(QrayError, match=f"measuring memory of {tmp_path.name} failed"):
        measure_memory(tmp_path, POINT, 60)
