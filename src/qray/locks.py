"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qray.errors import QrayError
from qray.escape import command

if sys.platform != "win32":
    import fcntl

#: In OUT: who writes there.
HELD = ".held"
#: Of the environment of a job of `qray submit`: the job's name.
JOB = "QRAY_JOB"


def lock(descriptor: int, shared: bool = False, wait: bool = False) -> bool:
    """Take the lock of an open file, which lasts until it is closed; whether nobody else had it.

    shared: with others who ask for no more. wait: until it is free.

    Raises:
        OSError: the file system has no locks.
    """
    if sys.platform == "win32":
        raise OSError("no locks")
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextmanager
def out_held(out: Path, called: str | None = None) -> Iterator[None]:
    """Keep an output folder to this process. called: what people call it, if not by its path.

    Raises:
        QrayError: another has it, which is named; or it cannot be written to.
    """
    path = out / HELD
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise QrayError(f"{out} cannot be written to ({error.strerror})") from None
        try:
            if not _lock_if_any(descriptor):
                holder = _holder(descriptor)
                raise QrayError(
                    f"{called or out} is being written to by {holder}; wait for its end, or name another --out"
                )
            if not is_at(descriptor, path):
                # Its holder has ended, and taken it away, since it was opened.
                continue
            words = {
                "command": command("qray", *sys.argv[1:]), "process": os.getpid(), "host": socket.gethostname(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"), "job": os.environ.get(JOB),
            }  # fmt: skip
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(words).encode(), 0)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one that a path names."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock_if_any(descriptor: int) -> bool:
    """As `lock`; where the file system has none, everybody has it."""
    try:
        return lock(descriptor)
    except OSError:
        return True


def _holder(descriptor: int) -> str:
    try:
        of = json.loads(os.pread(descriptor, 2**16, 0))
        job = f"job {of['job']}, " if of.get("job") else ""
        return f"`{of['command']}` ({job}process {of['process']} on {of['host']}, since {of['since']})"
    except (ValueError, KeyError, TypeError):
        # It has just begun.
        return "another run"
