"""What every kind of test shares: a small synthetic data set, made once, and how the tests are split in two."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

#: Folders whose tests run one after the other in one process: each starts a Ray, or a browser, of its own.
SERIAL = ("ray", "browser")
TINY_COUNTS = {"TRAIN": 24, "VAL": 8, "TEST": 12}


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for the whole suite; files that are named, and what is to be seen as it comes, run in this one."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return 2 if whole and config.option.capture != "no" else 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process takes the tests with Ray, the other begins with those of the shared artifacts; then file by file."""
    for item in items:
        if item.path.parent.name in SERIAL:
            group = "0 serial"
        elif "shelf" in getattr(item, "fixturenames", ()):
            group = "1 shelf"
        else:
            group = str(item.path.relative_to(item.config.rootpath))
        item.add_marker(pytest.mark.xdist_group(group))
    # The longest first: what is left at the end is short.
    items.sort(key=lambda item: min(str(next(item.iter_markers("xdist_group")).args[0]), "2"))


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
