"""How many CPUs there are: one answer everywhere, whatever affinity and control groups leave of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qray.measure import host
from qray.measure.host import cpu_quota, usable_cpus
from qray.measure.latency import cores

V2 = "0::/pod/container\n"
V1 = "9:name=systemd:/\n4:memory:/elsewhere\n1:cpu,cpuacct:/docker/1f\n0::/\n"


def groups(root: Path, own: str, **files: str) -> float | None:
    """The quota that a tree of control groups grants; `files` maps paths, with __ for /, to their text."""
    (root / "own").write_text(own, encoding="utf-8")
    for name, text in files.items():
        path = root / "fs" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name.replace("cpu_", "cpu.")).write_text(text, encoding="utf-8")
    return cpu_quota(root / "fs", root / "own")


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path / "none") is None


def test_a_group_of_version_2_without_limit_is_none(tmp_path: Path) -> None:
    assert groups(tmp_path, V2, pod__container__cpu_max="max 100000\n") is None


def test_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    limits = {"pod__container__cpu_max": "400000 100000\n", "pod__cpu_max": "150000 100000\n"}
    assert groups(tmp_path, V2, **limits) == 1.5


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/\n", cpu_max="50000 100000\n") == 0.5


def test_version_1_names_quota_and_period_in_files_of_their_own(tmp_path: Path) -> None:
    limits = {"cpu__docker__1f__cpu_cfs_quota_us": "250000\n", "cpu__docker__1f__cpu_cfs_period_us": "100000\n"}
    assert groups(tmp_path, V1, **limits) == 2.5


def test_minus_1_is_no_limit_in_version_1(tmp_path: Path) -> None:
    limits = {"cpu__cpu_cfs_quota_us": "-1\n", "cpu__cpu_cfs_period_us": "100000\n"}
    assert groups(tmp_path, V1, **limits) is None


@pytest.mark.parametrize("own", ["", "nonsense\n", "1:cpu\n"])
def test_a_listing_that_makes_no_sense_is_no_limit(tmp_path: Path, own: str) -> None:
    assert groups(tmp_path, own, cpu_max="junk\n") is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 3), (0.2, 1), (1.0, 1), (1.5, 2), (64.0, 3)])
def test_a_part_of_a_cpu_counts_as_one_and_affinity_is_never_exceeded(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(host, "usable_cores", lambda: [1, 4, 5])
    monkeypatch.setattr(host, "cpu_quota", lambda: quota)
    assert usable_cpus() == expected


def test_measuring_is_pinned_to_no_more_cores_than_the_quota_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qray.measure.latency.usable_cores", lambda: [1, 4, 5])
    monkeypatch.setattr("qray.measure.latency.usable_cpus", lambda: 2)
    assert cores(3) == [1, 4]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_on_one_core_every_page_says_1_and_training_has_1_thread() -> None:
    code = (
        f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n"
        "from qray.doctor import _cpu; from qray.measure.host import host_name\n"
        "from qray.units.work import training_threads\n"
        "print('1 usable core' in _cpu()[1], host_name().endswith(', 1 cores)'), training_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "1"]
