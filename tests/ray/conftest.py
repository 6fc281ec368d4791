"""Ray sessions inside the test process, each ended by the test that asked for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import ray


@pytest.fixture
def local_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that starts a Ray of this test's own: local_ray(cpus, object_store_bytes=None)."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def begin(cpus: int, object_store_bytes: int | None = None) -> None:
        ray.init(
            address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            object_store_memory=object_store_bytes,
        )  # fmt: skip

    yield begin
    ray.shutdown()
