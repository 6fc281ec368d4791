"""Fixtures that every kind of test shares: a small synthetic data set, made once, and a small study."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qray.measure.latency import wait_quietly

if TYPE_CHECKING:
    from qray.words.document import Document

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Two processes of tests and what they start share the cores, as in a run.
wait_quietly()
# A thread that outlives its session fails, and does not start another Ray in the middle of the next test.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Tests with Ray take longest: its workers shall not stand back for those of the other process.
os.environ.setdefault("RAY_worker_niceness", "0")
# Nodes of one or two CPUs keep workers that have imported torch, as a Ray of qray's own does.
os.environ.setdefault("RAY_num_workers_soft_limit", "6")
# Nothing that a test writes has to outlive a power cut, and of an OUT that is made up half the time is the disk's.
os.fsync = lambda descriptor: None

#: Tests that share what is made once in a process: whole runs, a Ray, artifacts, the full report.
ROOMS = (
    tuple(f"tests/ray/test_{name}.py" for name in ("kit", "resume", "run", "sensitivity")), ("tests/ray/",),
    ("tests/unit/engines/", "tests/unit/measure/"), ("tests/unit/report/", "tests/browser/"),
)  # fmt: skip
TINY_COUNTS = {"TRAIN": 24, "VAL": 10, "TEST": 12}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Which tests belong into one process where there are several: those of a room, else those of a file.
    The two rooms with Ray come first, one to a process: they take longest, and a Ray that waits leaves the cores to the
    other."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRoom(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((rooms[0] for rooms in ROOMS if nodeid.startswith(rooms)), nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return ByRoom(config, log)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic EchoNet-like set of 24 TRAIN, 10 VAL and 12 TEST clips. Read-only: copy it to change it."""
    from qray.synthetic.generate import synthesize

    root = tmp_path_factory.mktemp("echo") / "set"
    synthesize(root, TINY_COUNTS, seed=0, workers=2)
    return root


@pytest.fixture(scope="session")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Document]:
    """OUT of a run with everything that a report can show, and that report, written. For reading."""
    from support.reports import full_run, report_of

    from qray.report.page import write_document

    folder = tmp_path_factory.mktemp("full")
    out = full_run(folder / "out")
    document = report_of(out, folder / "set")
    write_document(document, out)
    return out, document


@pytest.fixture
def no_ray_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of qray's own, whatever the environment of the tests says."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
