"""Ray sessions inside the test process, each ended by the fixture that began it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import ray

Begin = Callable[..., None]


def begin(cpus: int, object_store_bytes: int | None = None) -> None:
    """Start a Ray of this test's own, in the place of the one before."""
    ray.shutdown()
    ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=object_store_bytes,
    )  # fmt: skip


@pytest.fixture
def local_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """`begin`, for a session that ends with the test."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield begin
    ray.shutdown()


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    """A session on two logical CPUs for the tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        begin(2)
        yield
        ray.shutdown()
