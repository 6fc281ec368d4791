"""Folders for temporary files: gone at the end, or with the next start where their process was killed; and where the
one that TMPDIR names will not do: too long, with blanks, or not writable."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from qray.errors import QrayError
from qray.locks import is_at, lock

#: In a temporary folder of qray's: locked as long as the process lives that made it.
ALIVE = ".alive"


@contextlib.contextmanager
def scratch_folder(label: str, root: Path | None = None) -> Iterator[Path]:
    """A temporary folder, removed at the end. Those that processes of this user left which were killed go first.

    root: where, by default the usual place.
    """
    where = root or Path(tempfile.gettempdir())
    sweep(where)
    folder, alive = _marked(label, where)
    try:
        inside = folder / "files"
        inside.mkdir(0o700)
        yield inside
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(alive)


def _marked(label: str, where: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that keeps it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"qray-{label}-", dir=where))
        try:
            alive = os.open(folder / ALIVE, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue
        try:
            if lock(alive) and is_at(alive, folder / ALIVE):
                return folder, alive
        except OSError:
            # A file system without locks; nobody sweeps there.
            return folder, alive
        # Another's sweep came between.
        os.close(alive)


def sweep(where: Path) -> None:
    """Remove what `scratch_folder` made for this user in processes that are dead."""
    if sys.platform == "win32":
        return
    for mark in where.glob(f"qray-*/{ALIVE}"):
        with contextlib.suppress(OSError):
            if mark.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(mark, os.O_RDWR)
            try:
                if lock(descriptor):
                    shutil.rmtree(mark.parent, ignore_errors=True)
            finally:
                os.close(descriptor)


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder. Trying is the only proof."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def temporary_root(fits: Callable[[str], bool]) -> Path | None:
    """The first of TMPDIR and the system's usual folders that is writable and whose path `fits`."""
    usual = (os.environ.get("TMPDIR"), "/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm")
    return next((Path(name) for name in usual if name and fits(name) and writable(Path(name))), None)


def has_blank(path: str) -> bool:
    """Whether a command line that does not quote would take a path for several."""
    return len(path.split()) != 1


@contextlib.contextmanager
def without_blanks(cache_variable: str) -> Iterator[bool]:
    """Temporary files, and the cache that an environment variable names, in folders without blanks in their paths.

    For those who hand paths to a compiler unquoted. Yields whether that took a change, which is of this process's
    environment and undone at the end.

    Raises:
        QrayError: there is no such folder.
    """
    before = {name: os.environ.get(name) for name in ("TMPDIR", cache_variable)}
    moved = has_blank(tempfile.gettempdir()) or has_blank(before[cache_variable] or "-")
    if moved:
        root = temporary_root(lambda path: not has_blank(path))
        if root is None:
            raise QrayError(
                f"nothing can be compiled in {tempfile.gettempdir()!r}: its path has a blank; set TMPDIR to a writable "
                "folder without, for example TMPDIR=/tmp"
            )
        os.environ["TMPDIR"] = tempfile.tempdir = str(root)
        os.environ[cache_variable] = str(root / f"qray-compiled-{getpass.getuser()}")
    try:
        yield moved
    finally:
        if moved:
            # Python finds its own again when it is next asked.
            tempfile.tempdir = None
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
