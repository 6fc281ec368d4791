"""A process that does what the driver of a run does with what it starts, for tests of its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qray.graph.guard import guarded
from qray.scratch import scratch_folder


def drive(ready: str) -> None:
    """Start a process that has left its group and does not heed SIGTERM, make a temporary folder, write the process's
    number to the file `ready`, and end when standard input does."""
    ignores = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
    with guarded(), scratch_folder("driver"):
        process = subprocess.Popen([sys.executable, "-c", ignores], start_new_session=True, stderr=subprocess.DEVNULL)
        Path(ready).write_text(f"{process.pid}")
        sys.stdin.buffer.read()
    # As Ray does at the end of a session.
    process.kill()
