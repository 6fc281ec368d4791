"""A process that outlives the driver: where that is killed, or Ray ends it from within, its Ray is ended at once, its
temporary folders go, and the user is told. Ray alone notices after a minute, and says nothing of the run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator
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
#: Processes that are killed may still start others, and Ray's workers, which have titles too, end by themselves soon
#: after what started them.
SETTLE_S, AT_MOST_S, ROUND_S = 5.0, 30.0, 0.2


@contextlib.contextmanager
def guarded() -> Iterator[Callable[[], None]]:
    """Guard what is started meanwhile against the end of this process.

    Yields what is to be called once Ray has started: its agents give themselves titles, which overwrites their marks.
    """
    mark = uuid.uuid4().hex
    watcher = start_apart(__name__, "watch", mark, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    before = os.environ.get(MARK)
    os.environ[MARK] = mark

    def note() -> None:
        import psutil

        known = []
        for each in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                known.append([each.pid, each.create_time()])
        assert watcher.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            watcher.stdin.write(f"{json.dumps(known)}\n".encode())
            watcher.stdin.flush()

    try:
        yield note
    finally:
        del os.environ[MARK]
        if before is not None:
            os.environ[MARK] = before
        # It may have been killed itself.
        with contextlib.suppress(BrokenPipeError):
            watcher.communicate(DONE)


def watch(mark: str) -> None:
    """Body of the process: wait for the driver's word, or for its end."""
    *known, last = sys.stdin.buffer.read().split(b"\n")
    if last == DONE:
        return
    started = {(pid, at) for line in known for pid, at in json.loads(line) if pid != os.getpid()}
    with contextlib.suppress(OSError):
        os.write(2, f"{LAST_WORDS}\n".encode())
    began = time.monotonic()
    while (took := time.monotonic() - began) < AT_MOST_S:
        left = end_marked(mark, started)
        sweep(Path(tempfile.gettempdir()))
        if not left and took > SETTLE_S:
            break
        time.sleep(ROUND_S)


def end_marked(mark: str, known: Collection[tuple[int, float]]) -> int:
    """Kill every process of this user that a session has started, by its mark or because it is `known` by its number
    and the time of its start; how many there were."""
    import psutil

    found = 0
    for process in psutil.process_iter():
        # Other users' processes do not show their environment, and some end meanwhile.
        with contextlib.suppress(psutil.Error, OSError):
            ours = (process.pid, process.create_time()) in known or process.environ().get(MARK) == mark
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                found += 1
    return found
