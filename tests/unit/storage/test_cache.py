"""Files that lie elsewhere, on this machine's disk: never more than the limit, and never taken from who reads them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.caches import held_bytes

from qray.errors import ClipError, QrayError
from qray.storage import cache as module
from qray.storage.cache import Cache
from qray.storage.place import Stat

SIZE, KEPT = 1000, 10
PATIENCE_S = 60.0
#: What they run is here already.
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Shelf:
    """What a cache asks of a place, without a store: its content is made up from its name, and slow to come."""

    name: str
    log: Path
    size: int = SIZE

    def content(self) -> bytes:
        return (self.name.encode() * self.size)[: self.size]

    def fetch(self, to: Path) -> None:
        with self.log.open("a") as log:
            print(self.name, file=log)
        half = self.size // 2
        with to.open("wb") as file:
            file.write(self.content()[:half])
            file.flush()
            time.sleep(0.002)
            file.write(self.content()[half:])


def read(cache: Cache, log: Path, name: str) -> None:
    shelf = Shelf(name, log)
    with cache.file(shelf, Stat(SIZE, 1)) as path:  # type: ignore[arg-type]
        assert path.read_bytes() == shelf.content()


def read_many(cache: Cache, log: Path, seed: int) -> None:
    """Body of a process: files in an order of its own, of which the others read some too."""
    for step in range(60):
        read(cache, log, f"{(seed * 17 + step * 7) % 40}.avi")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Room for KEPT files."""
    return Cache(tmp_path / "cache", KEPT * SIZE)


def fetched(log: Path) -> list[str]:
    return log.read_text().split()


def test_a_file_is_fetched_once_and_then_read_from_disk(cache: Cache, log: Path) -> None:
    for _ in range(3):
        read(cache, log, "a.avi")
    assert fetched(log) == ["a.avi"]


def test_the_ending_of_a_name_stays(cache: Cache, log: Path) -> None:
    with cache.file(Shelf("a.avi", log), Stat(SIZE, 1)) as path:  # type: ignore[arg-type]
        assert path.suffix == ".avi"


def test_several_processes_never_hold_more_than_the_limit(cache: Cache, log: Path) -> None:
    readers = [FORK.Process(target=read_many, args=(cache, log, seed)) for seed in range(3)]
    for reader in readers:
        reader.start()
    most, deadline = 0, time.monotonic() + PATIENCE_S
    while any(reader.is_alive() for reader in readers):
        assert time.monotonic() < deadline, "the readers do not end"
        most = max(most, held_bytes(cache))
    assert [reader.exitcode for reader in readers] == [0, 0, 0]
    assert 0 < most <= cache.limit
    assert held_bytes(cache) > 0.5 * cache.limit, "it keeps less than it may"


def test_a_file_changes_its_name_while_nobody_counts(cache: Cache, log: Path) -> None:
    there, go_on = threading.Event(), threading.Event()

    class Slow(Shelf):
        def fetch(self, to: Path) -> None:
            super().fetch(to)
            there.set()
            assert go_on.wait(PATIENCE_S)

    def bring() -> None:
        with cache.file(Slow("a.avi", log), Stat(SIZE, 1)):  # type: ignore[arg-type]
            pass

    reader = threading.Thread(target=bring)
    reader.start()
    assert there.wait(PATIENCE_S)
    with cache._counted():
        go_on.set()
        reader.join(0.3)
        assert not list(cache.folder.glob("[!.]*.avi"))
    reader.join(PATIENCE_S)
    assert list(cache.folder.glob("[!.]*.avi"))


def test_what_was_not_read_for_longest_goes_first(cache: Cache, log: Path) -> None:
    for number in range(KEPT):
        read(cache, log, f"{number}.avi")
    read(cache, log, "0.avi")
    read(cache, log, "new.avi")
    log.write_text("")
    read(cache, log, "0.avi")
    read(cache, log, "1.avi")
    assert fetched(log) == ["1.avi"]


def test_a_file_that_is_being_read_stays(cache: Cache, log: Path) -> None:
    shelf = Shelf("mine.avi", log)
    with cache.file(shelf, Stat(SIZE, 1)) as path:  # type: ignore[arg-type]
        for number in range(3 * KEPT):
            read(cache, log, f"{number}.avi")
        assert path.read_bytes() == shelf.content()


def test_another_content_is_another_file(cache: Cache, log: Path) -> None:
    read(cache, log, "a.avi")
    with cache.file(Shelf("a.avi", log, 500), Stat(500, 2)) as path:  # type: ignore[arg-type]
        assert path.stat().st_size == 500


def test_one_that_changed_since_it_was_checked_is_no_clip(cache: Cache, log: Path) -> None:
    with (
        pytest.raises(ClipError, match="changed since it was checked: 1000 bytes, 999 before"),
        cache.file(Shelf("a.avi", log), Stat(999, 1)),  # type: ignore[arg-type]
    ):
        pass
    assert held_bytes(cache) == 0


@pytest.mark.parametrize("held", [0, KEPT], ids=["larger-than-the-limit", "all-the-others-are-being-read"])
def test_what_does_not_fit_is_a_sentence(held: int, cache: Cache, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    size = SIZE if held else cache.limit + 1
    with ExitStack() as stack:
        for number in range(held):
            stack.enter_context(cache.file(Shelf(f"{number}.avi", log), Stat(SIZE, 1)))  # type: ignore[arg-type]
        with pytest.raises(QrayError, match="QRAY_CACHE_GB allows 10000 bytes; raise it"):
            stack.enter_context(cache.file(Shelf("big.avi", log, size), Stat(size, 1)))  # type: ignore[arg-type]
        assert held_bytes(cache) == held * SIZE


@dataclass(frozen=True)
class Deadly(Shelf):
    """One whose reader is killed when it has nearly all of it."""

    def fetch(self, to: Path) -> None:
        to.write_bytes(self.content())
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_had_begun_makes_room_for_others(cache: Cache, log: Path) -> None:
    def begin() -> None:
        with cache.file(Deadly("a.avi", log, cache.limit // 2), Stat(cache.limit // 2, 1)):  # type: ignore[arg-type]
            pass

    process = FORK.Process(target=begin)
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    assert held_bytes(cache) == cache.limit // 2
    for number in range(KEPT):
        read(cache, log, f"{number}.avi")
    assert held_bytes(cache) <= cache.limit
    assert not list(cache.folder.glob(".tmp-*"))


@pytest.mark.parametrize("text", ["0", "-1", "much", "nan", "inf"])
def test_a_limit_that_is_none_is_a_usage_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRAY_CACHE_GB", text)
    with pytest.raises(QrayError, match=f"QRAY_CACHE_GB={text}: expected the number of GiB") as found:
        module.limit_bytes()
    assert found.value.exit_code == 2
