"""End runs, and what they have started, at a moment; and say what that left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
from support.runs import END_TIMEOUT_S, RUN_TIMEOUT_S, predictions, results, unit_times, wait_until

#: Columns that neither a clock nor the disk has a part in.
FIGURES = [
    "stage", "variant", "status", "reason", "n_clips", "mae", "mae_low", "mae_high", "rmse", "r2", "delta_mae",
    "delta_low", "delta_high", "verdict", "p_holm", "val_mae", "guardrails", "settings",
]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a run ended: the exit code, all that it said, the processes and temporary folders that it left, and when each
    unit that was finished by then had been written."""

    code: int
    words: str
    left: list[object]
    kept: dict[str, int]


def with_title(process: psutil.Process, name: str) -> bool:
    """Whether a process's command line has a word in it; of work, Ray makes it "ray::NAME"."""
    try:
        return name in " ".join(process.cmdline())
    except psutil.Error:
        return False


def strike(process: subprocess.Popen[str], name: str) -> None:
    """Kill a process of a run by its command line, as soon as there is one."""

    def struck() -> bool:
        assert process.poll() is None, f"the run ended without {name}: {process.communicate()}"
        for child in psutil.Process(process.pid).children(recursive=True):
            if with_title(child, name):
                child.kill()
                return True
        return False

    wait_until(struck, f"a process called {name}", every_s=0.02)


def left_of(processes: Collection[psutil.Process]) -> list[psutil.Process]:
    """Those that live on for a minute. Process 1 of some machines takes its time until it notices an end."""
    deadline = time.monotonic() + END_TIMEOUT_S
    while (left := [each for each in processes if _lives(each)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end(process: subprocess.Popen[str], how: str, out: Path, temporary: Path) -> Ended:
    """End a run by a signal: to all of its processes at once, as a terminal does; SIGKILL to the command alone. Any
    other `how` waits for its own end. temporary: what the run has for TMPDIR."""
    family = psutil.Process(process.pid).children(recursive=True)
    if how == "SIGKILL":
        process.kill()
    elif how.startswith("SIG"):
        os.killpg(process.pid, getattr(signal, how))
    said = process.communicate(timeout=END_TIMEOUT_S if how.startswith("SIG") else RUN_TIMEOUT_S)
    left = left_of(family)
    words = "".join(each or "" for each in said)
    return Ended(process.returncode, words, [*left, *temporary.glob("qray-*")], unit_times(out))


def equals(out: Path, undisturbed: Path) -> None:
    """The table of a run and its predictions are another's, to the last bit, except timings."""
    ours, theirs = (results(each)[FIGURES].drop_duplicates().reset_index(drop=True) for each in (out, undisturbed))
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    for variant in theirs["variant"][theirs["stage"] == "variant"]:
        pd.testing.assert_series_equal(
            predictions(out, variant), predictions(undisturbed, variant), check_exact=True, obj=variant
        )
