"""Start a Ray for one run, where its sockets, its token and its shared memory find a place."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import psutil
import ray

from qray.errors import QrayError
from qray.malloc import ARENAS
from qray.measure.latency import wait_quietly
from qray.ray_token import provide_token
from qray.reasons import reason_of
from qray.scratch import has_blank, temporary_root, writable
from qray.signals import hangup_blocked

#: The system's limit of a socket's path, less what Ray puts under its folder:
#: /ray/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store
ROOT_BYTES = 107 - len("/ray/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store")
SHARED_MEMORY = Path("/dev/shm")
#: Where there is no shared memory, the object store is a file; Ray would not start without being told its size.
STORE_WITHOUT_SHARED_MEMORY_BYTES = 2**30
#: Ray ends idle workers beyond one a CPU after a second. On a few CPUs, which are cut into slots, it would end those
#: that the next step has use for, and each that starts anew imports torch for seconds.
IDLE_WORKERS_AT_LEAST = 6

#: In an error of Ray's that another start may not meet.
LATE = re.compile(r"timed out|dashboard\b")


def _fits(path: str) -> bool:
    return len(os.fsencode(os.path.abspath(path))) <= ROOT_BYTES and not has_blank(path)


def ray_root() -> Path:
    """The folder in which a local Ray makes `ray/`, for sockets and logs: RAY_TMPDIR or TMPDIR where that will do.

    Raises:
        QrayError: no folder will.
    """
    named = os.environ.get("RAY_TMPDIR")
    root = Path(named) if named and _fits(named) and writable(Path(named)) else temporary_root(_fits)
    if root is None:
        raise QrayError(
            f"cannot start Ray: its sockets need a writable folder whose path has at most {ROOT_BYTES} bytes and no "
            "blank; neither TMPDIR nor /tmp is one; set RAY_TMPDIR to such a folder, for example RAY_TMPDIR=/run/qray"
        )
    return root.absolute()


def start_local_ray(num_cpus: int, common: dict[str, Any], starts: int = 3) -> Any:
    """`ray.init` of a Ray of one's own, with the options that every session has; `starts`: how often it is tried.

    Raises:
        QrayError: it did not start; says what to set.
    """
    root = ray_root()
    provide_token(root)
    wait_quietly()
    if not _fits(tempfile.gettempdir()):
        # Processes that Ray starts make sockets there, and builds compile.
        os.environ["TMPDIR"] = tempfile.tempdir = str(root)
    # Ray's own processes and workers, from their start on.
    os.environ.setdefault("MALLOC_ARENA_MAX", str(ARENAS))
    options: dict[str, Any] = {
        "_temp_dir": str(root / "ray"),
        "_system_config": {"num_workers_soft_limit": max(num_cpus, IDLE_WORKERS_AT_LEAST)},
    }
    if not SHARED_MEMORY.is_dir():
        options |= {"_plasma_directory": str(root), "object_store_memory": STORE_WITHOUT_SHARED_MEMORY_BYTES}
    before = psutil.Process().children()
    while True:
        try:
            with hangup_blocked():
                return ray.init(address="local", num_cpus=num_cpus, include_dashboard=True, **options, **common)
        except Exception as error:
            # Of no class of its own where a process of Ray's is not up in 30 s, or the dashboard in 60, which a busy
            # machine may need; of the dashboard it says no more than what that has said last.
            ray.shutdown()
            # Those that did come up would stay.
            for process in psutil.Process().children():
                if process not in before:
                    process.kill()
            starts -= 1
            if not starts or not LATE.search(str(error)):
                raise QrayError(
                    f"cannot start a local Ray: {reason_of(str(error))}; its logs are in {root}/ray/session_latest/logs"
                ) from error
