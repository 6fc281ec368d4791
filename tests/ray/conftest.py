"""Ray sessions inside the test process, each ended by the fixture that began it; and whole runs, made once for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import ray
from support.runs import WHOLE, Finished, run_tiny

Begin = Callable[..., None]
WholeRun = Callable[[int], tuple[Path, Finished]]

_begun: list[tuple[int, int | None]] = []


def begin(cpus: int, object_store_bytes: int | None = None) -> None:
    """Go on with the Ray of the test before if it is like this, or start one in its place."""
    if ray.is_initialized() and _begun == [(cpus, object_store_bytes)]:
        return
    end()
    for last in (False, True):
        try:
            ray.init(
                address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
                object_store_memory=object_store_bytes,
            )  # fmt: skip
        except Exception:
            # Ray's processes have 30 s to come up, which a busy machine does not always grant.
            if last:
                raise
            ray.shutdown()
        else:
            break
    _begun.append((cpus, object_store_bytes))


def end() -> None:
    """End the Ray that was begun."""
    ray.shutdown()
    _begun.clear()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Begin]:
    """`begin`, for sessions of a module; the last ends with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        yield begin
        end()


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    """A session on two logical CPUs for the tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        begin(2)
        yield
        end()


@pytest.fixture(scope="session")
def whole_run(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """OUT and the words of `qray run all` on a number of logical CPUs (1, 2 or 4), once for each number.

    OUT is for reading: copy it to change it.
    """

    @cache
    def run(cpus: int) -> tuple[Path, Finished]:
        out = tmp_path_factory.mktemp("whole") / "out"
        done = run_tiny("all", tiny_dataset, out, "--num-cpus", cpus, *WHOLE[cpus])
        assert done.code == 0, done.stderr
        return out, done

    return run
