"""Fixtures that every kind of test shares: a small synthetic data set, made once, and a small study."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A thread that outlives its session fails, and does not start another Ray in the middle of the next test.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

TESTS = Path(__file__).parent
TINY_COUNTS = {"TRAIN": 24, "VAL": 8, "TEST": 12}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests belong into one process where pytest-xdist runs several: all that start a Ray, since two of them
    would fight over the cores, those that share the built artifacts, and otherwise those of a file."""
    for item in items:
        file = item.path.relative_to(TESTS)
        shared = "ray" if file.parts[0] == "ray" else "shelf" if "shelf" in getattr(item, "fixturenames", ()) else None
        item.add_marker(pytest.mark.xdist_group(shared or str(file)))


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic EchoNet-like set of 24 TRAIN, 8 VAL and 12 TEST clips. Read-only: copy it to change it."""
    from qray.data.synth import synthesize

    root = tmp_path_factory.mktemp("echo") / "set"
    synthesize(root, TINY_COUNTS, seed=0, workers=2)
    return root


@pytest.fixture
def no_ray_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of qray's own, whatever the environment of the tests says."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
