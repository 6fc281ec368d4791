"""A server that speaks S3, for the tests of this room, and the environment of its clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.s3 import Server, client, serving


@pytest.fixture(scope="session")
def running() -> Iterator[Server]:
    """The server. Each test has a folder of its own there, by its name."""
    with serving() as server:
        yield server


@pytest.fixture
def server(running: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, with this process as its client, which keeps what it keeps in the test's folder."""
    for name, value in client(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    from qray.data.probing import end_probing
    from qray.storage.cache import cache_folder

    cache_folder.cache_clear()
    # What judges videos for others has another environment.
    end_probing()
    return running
