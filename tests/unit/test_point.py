"""A point names a device, threads and a batch; on the CPU, keys are those of before devices were named."""

from __future__ import annotations

from qray.point import Point


def test_points_of_two_devices_are_two() -> None:
    assert Point(threads=1, batch=1) != Point(device="cuda", threads=1, batch=1)


def test_the_first_point_is_one_of_the_cpu() -> None:
    points = [Point(device="cuda", threads=1, batch=1), Point(threads=2, batch=8), Point(threads=2, batch=1)]
    assert list(map(str, sorted(points))) == ["2 threads, batch 1", "2 threads, batch 8", "cuda, 1 thread, batch 1"]


def test_a_key_hashes_the_device_only_where_it_is_no_cpu() -> None:
    assert Point(threads=1, batch=4).depends() == {"threads": 1, "batch": 4}
    assert Point(device="cuda", threads=1, batch=4).depends() == {"device": "cuda", "threads": 1, "batch": 4}
