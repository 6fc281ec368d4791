"""Python in a process apart, which imports what this one would."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def start_apart(module: str, function: str, *arguments: str, **pipes: Any) -> subprocess.Popen[bytes]:
    """Start a process that calls `module.function(*arguments)`; pipes: as `subprocess.Popen` takes them.

    In a session of its own: Ctrl-C is for who started it. multiprocessing would first run the main module of whoever
    called; its pools do not say which process ended how.
    """
    program = (
        "import json, sys; sys.path[:], arguments = json.loads(sys.argv[1]); "
        f"from {module} import {function}; {function}(*arguments)"
    )
    command = [sys.executable, "-c", program, json.dumps([sys.path, arguments])]
    return subprocess.Popen(command, start_new_session=True, **pipes)
