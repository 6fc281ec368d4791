"""Files of object stores on this machine's disk, for as long as they are read: the least recently read go first.

Any number of processes share the folder. Whoever reads a file holds its lock, so that nobody takes it away; who writes
one has counted it before, so that the folder never holds more than its limit.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from qray.atomic import UNFINISHED
from qray.errors import ClipError, QrayError, UsageError
from qray.locks import is_at, lock
from qray.scratch import writable
from qray.storage.place import Place, Stat, is_uri, place_of

#: Variables of the environment: the folder of everything that is kept on this machine, and GiB of data files in it.
FOLDER, LIMIT = "QRAY_CACHE", "QRAY_CACHE_GB"
DEFAULT_GB = 10.0
#: Where it is full, a tenth is made free at a time: looking through the folder costs more than a file.
ROOM = 0.1
#: Seconds to wait for files that are being read, where nothing else could go.
PATIENCE_S = 120.0


@cache
def cache_folder() -> Path:
    """Where this machine keeps what lies elsewhere: QRAY_CACHE, the user's cache folder, or the temporary one.

    Raises:
        UsageError: QRAY_CACHE is not a folder that can be written to.
    """
    named = os.environ.get(FOLDER)
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "qray"
    places = [Path(named).expanduser()] if named else [usual, Path(tempfile.gettempdir()) / f"qray-{getpass.getuser()}"]
    for folder in places:
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if writable(folder):
                return folder.resolve()
    raise UsageError(f"{places[0]} ({FOLDER}) cannot be written to; name a folder of this machine")


def limit_bytes() -> int:
    """Most bytes of data files, by QRAY_CACHE_GB.

    Raises:
        UsageError: that is no number over 0.
    """
    text = os.environ.get(LIMIT) or str(DEFAULT_GB)
    try:
        limit = int(float(text) * 2**30)
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise UsageError(f"{LIMIT}={text}: expected the number of GiB that data files may take on each machine")
    return limit


def located(place: Place, stat: Stat) -> str:
    """A file as it is now, for whoever is to read it: its URI, and what shows whether it was changed since."""
    return f"{place}#{stat.size}-{stat.mtime_ns}"


@contextmanager
def local_copy(where: str | Path) -> Iterator[Path]:
    """The file of a path or URI (of `located`, or as a user writes it), on this machine's disk while it is read.

    Raises:
        ClipError: it is not there any more, or is another one by now. QrayError: it cannot be had.
    """
    if not is_uri(where):
        yield Path(where)
        return
    uri, _, known = str(where).partition("#")
    place = place_of(uri)
    if isinstance(place, Path):
        yield place
        return
    stat = Stat(*map(int, known.split("-"))) if known else place.stat()
    if stat is None:
        raise ClipError("file not found")
    with Cache(cache_folder() / "data", limit_bytes()).file(place, stat) as path:
        yield path


@dataclass(frozen=True)
class Cache:
    """A folder of files that lie elsewhere, and the most bytes that they may take."""

    folder: Path
    limit: int

    @contextmanager
    def file(self, place: Place, stat: Stat) -> Iterator[Path]:
        """The local copy of an object, which stays while it is read."""
        path = self.folder / _name(place, stat)
        while (held := _held(path)) is None:
            self._bring(place, stat, path)
        try:
            # When it was read last; not by atime, which most file systems do not keep.
            os.utime(held)
            yield path
        finally:
            os.close(held)

    def _bring(self, place: Place, stat: Stat, path: Path) -> None:
        # Its name says what it will take.
        temporary = path.with_name(f"{UNFINISHED}{stat.size}-{uuid.uuid4().hex[:12]}{path.suffix}")
        descriptor = self._make_room(place, stat.size, temporary)
        try:
            place.fetch(temporary)
            if (size := temporary.stat().st_size) != stat.size:
                raise ClipError(f"changed since it was checked: {size} bytes, {stat.size} before")
            # Whoever counts the files sees it under one name.
            with self._counted():
                temporary.rename(path)
        except FileNotFoundError:
            raise ClipError("file not found") from None
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)

    def _make_room(self, place: Place, size: int, temporary: Path) -> int:
        """Count bytes that are about to be written, after taking away what was not read for longest; the descriptor of
        the file that they go to, which nobody takes for one that a dead process left while it is open.

        Raises:
            QrayError: there is no room, and none is to be had.
        """
        deadline = time.monotonic() + PATIENCE_S
        while size <= self.limit:
            with self._counted() as count:
                if count.total + size > self.limit:
                    count.total = self._reduce(max(0, int((1 - ROOM) * self.limit) - size))
                if count.total + size <= self.limit:
                    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o600)
                    _shared(descriptor)
                    count.total += size
                    return descriptor
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        raise QrayError(
            f"{place}: its {size} bytes do not fit into {self.folder} beside what is being read there: "
            f"{LIMIT} allows {self.limit} bytes; raise it"
        )

    def _reduce(self, most: int) -> int:
        """Remove files until there are at most so many bytes, in the order in which they were read; bytes left.

        What dead processes had begun goes too; what is being read or written stays.
        """
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    stat = entry.stat()
                    if entry.name.startswith(UNFINISHED):
                        will_be = int(entry.name.removeprefix(UNFINISHED).partition("-")[0])
                        files.append((False, 0, max(will_be, stat.st_size), entry.path))
                    elif entry.name != COUNT:
                        files.append((True, stat.st_mtime_ns, stat.st_size, entry.path))
        left = sum(size for _, _, size, _ in files)
        for whole, _, size, path in sorted(files):
            if (left > most or not whole) and _remove(path):
                left -= size
        return left

    @contextmanager
    def _counted(self) -> Iterator[_Count]:
        """The bytes in the folder as counted so far, for one process at a time."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.folder / COUNT, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with suppress(OSError):
                lock(descriptor, wait=True)
            text = os.pread(descriptor, 32, 0).strip()
            # A folder that was never counted, or by half: as full as can be, so that it is looked through.
            count = _Count(int(text) if text.isdigit() else self.limit)
            yield count
            os.pwrite(descriptor, b"%-32d" % count.total, 0)
        finally:
            os.close(descriptor)


#: In a cache: how many bytes are there, and the lock under which they are counted.
COUNT = ".bytes"


@dataclass
class _Count:
    total: int


def _name(place: Place, stat: Stat) -> str:
    """The ending stays: decoders look at it. Another content, by size or time, is another file."""
    key = hashlib.blake2b(located(place, stat).encode(), digest_size=16).hexdigest()
    return f"{key}{PurePosixPath(place.name).suffix[:16]}"


def _held(path: Path) -> int | None:
    """The descriptor of a file that nobody removes while it is open; None where there is no file."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        _shared(descriptor)
        if is_at(descriptor, path):
            return descriptor
        # It was removed in between.
        os.close(descriptor)


def _shared(descriptor: int) -> None:
    # A file system without locks removes what is being read, which its readers have open.
    with suppress(OSError):
        lock(descriptor, shared=True, wait=True)


def _remove(path: str) -> bool:
    """Remove a file that nobody reads; whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return True
    try:
        if not lock(descriptor):
            return False
        os.unlink(path)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
