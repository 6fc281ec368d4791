"""Folders for temporary files where the one that TMPDIR names will not do: too long, with blanks, or not writable."""

from __future__ import annotations

import contextlib
import getpass
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from qray.errors import QrayError


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
