"""One writer of an OUT in an object store: the second is told of the first, a dead one is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.s3 import Server

from qray.errors import QrayError
from qray.storage import lease as module
from qray.storage.lease import Lease
from qray.storage.place import Place, StorageError

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times in which a test can wait; the store tells them in whole seconds."""
    monkeypatch.setattr(module, "RENEW_S", 0.5)
    monkeypatch.setattr(module, "STALE_S", 4.0)
    monkeypatch.setattr(module, "LOOK_S", 0.5)


@pytest.fixture
def place(server: Server, request: pytest.FixtureRequest) -> Place:
    return server.place(request.node.name)


@pytest.fixture
def first(place: Place) -> Iterator[Lease]:
    lease = Lease(place, "first copy")
    lease.take()
    yield lease
    lease.release()


def stop(lease: Lease) -> None:
    """As kill -9 does: it is neither renewed nor given back."""
    lease._ended.set()
    lease._thread.join()


def test_the_second_is_refused_and_told_of_the_first(first: Lease, place: Place) -> None:
    with pytest.raises(QrayError, match=r"is being written to by `qray.*` \(process \d+ on .*, since .*\); wait for"):
        Lease(place, "second copy").take()
    first.check()
    assert len(place.files()) == 1, "the second left something"


def test_a_lease_that_was_given_back_is_free(place: Place) -> None:
    for copy in ("a", "b"):
        lease = Lease(place, copy)
        lease.take()
        lease.release()
    assert not place.files()


def test_one_of_a_dead_run_is_taken_over_when_it_was_not_renewed_for_long(first: Lease, place: Place) -> None:
    stop(first)
    said: list[str] = []
    began, second = time.monotonic(), Lease(place, "second copy", said.append)
    second.take()
    assert time.monotonic() - began > module.STALE_S / 2
    assert len(said) == 1
    assert "waiting up to 4 s to see whether it is alive" in said[0]
    second.release()


def test_one_of_a_dead_run_of_the_same_working_copy_is_taken_over_at_once(first: Lease, place: Place) -> None:
    stop(first)
    said: list[str] = []
    second = Lease(place, first.copy, said.append)
    second.take()
    assert not said
    second.release()


def test_a_run_that_was_taken_for_dead_learns_that_it_lost_its_place(first: Lease, place: Place) -> None:
    stop(first)
    second = Lease(place, "second copy")
    second.take()
    first._renewed = 0.0
    with pytest.raises(StorageError, match="was taken over by another run"):
        first.check()
    second.check()
    second.release()


def test_one_that_is_read_while_it_is_written_anew_still_counts(first: Lease, place: Place) -> None:
    stop(first)
    (place / ".held" / first._token).write_bytes(b'{"state": "hol')
    began, second = time.monotonic(), Lease(place, "second copy")
    second.take()
    assert time.monotonic() - began > module.STALE_S / 2
    second.release()


def test_of_many_who_ask_at_the_same_time_one_gets_it(place: Place) -> None:
    together = threading.Barrier(4)

    def ask(number: int) -> Lease | None:
        lease = Lease(place, f"copy {number}")
        together.wait(PATIENCE_S)
        try:
            lease.take()
        except QrayError:
            return None
        return lease

    with ThreadPoolExecutor(4) as pool:
        holders = [lease for lease in pool.map(ask, range(4), timeout=PATIENCE_S) if lease is not None]
    assert len(holders) == 1
    holders[0].check()
    holders[0].release()
