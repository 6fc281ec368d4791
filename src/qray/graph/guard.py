"""A process that outlives the driver: where that is killed, or Ray ends it from within, its Ray is ended at once, its
temporary folders go, and the user is told. Ray alone notices after a minute, and says nothing of the run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from qray.apart import start_apart
from qray.scratch import sweep

#: In the environment of all that a session starts, and of nothing else.
MARK = "QRAY_SESSION"
#: What the driver says when its session has ended in order.
DONE = b"done"
LAST_WORDS = (
    "error: the run has ended without a word: its process was killed, or that of the Ray on its machine (out of memory?"
    " `dmesg` names what the system kills); what was finished is kept, and the same command goes on from there"
)
#: Processes that are killed may still start others.
ROUNDS, ROUND_S = 20, 0.1


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Guard what is started meanwhile against the end of this process."""
    mark = uuid.uuid4().hex
    watcher = start_apart(__name__, "watch", mark, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    before = os.environ.get(MARK)
    os.environ[MARK] = mark
    try:
        yield
    finally:
        del os.environ[MARK]
        if before is not None:
            os.environ[MARK] = before
        # It may have been killed itself.
        with contextlib.suppress(BrokenPipeError):
            watcher.communicate(DONE)


def watch(mark: str) -> None:
    """Body of the process: wait for the driver's word, or for its end."""
    if sys.stdin.buffer.read() == DONE:
        return
    with contextlib.suppress(OSError):
        os.write(2, f"{LAST_WORDS}\n".encode())
    for _ in range(ROUNDS):
        if not end_marked(mark):
            break
        time.sleep(ROUND_S)
    sweep(Path(tempfile.gettempdir()))


def end_marked(mark: str) -> int:
    """Kill every process of this user that a session has started; how many there were."""
    import psutil

    found = 0
    for process in psutil.process_iter():
        # Other users' processes do not show their environment, and some end meanwhile.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                found += 1
    return found
