"""Killed and run again: what was finished is kept, and the end is the same as without the kill."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pytest
from support.runs import END_TIMEOUT_S, Finished, predictions, results, run_tiny, start, unit_times, wait_until
from support.runs import TINY as STUDY

COMMON = ("--num-cpus", 2)


def begin(data: Path, out: Path) -> subprocess.Popen[str]:
    """Start `qray run all` of the tiny study."""
    return start("run", "all", "--study", STUDY, "--data", data, "--out", out, *COMMON)


@dataclass(frozen=True)
class Ended:
    """How a run was ended before its end: the exit code, its last words, the processes that it left, and when each unit
    that was finished by then had been written."""

    code: int
    words: str
    left: list[psutil.Process]
    kept: dict[str, int]


def any_of(folder: str, pattern: str) -> Callable[[Path], bool]:
    """Whether OUT holds such a file."""
    return lambda out: any((out / folder).glob(pattern))


#: When a run is ended, one after the other in one OUT, and by what.
MOMENTS = {
    "SIGHUP after the first epoch": any_of("checkpoints", "*/epoch-*.pt"),
    "SIGINT after the first build": any_of("units", "build-*.json"),
    "SIGKILL after the first trial": any_of("units", "trial-*.json"),
}


def end(process: subprocess.Popen[str], how: str, out: Path) -> Ended:
    """End a run by a signal: to all of its processes at once, as a terminal does; SIGKILL to the command alone, whose
    Ray notices by itself, after a minute, and is not waited for."""
    family = psutil.Process(process.pid).children(recursive=True)
    if how == "SIGKILL":
        process.kill()
    else:
        os.killpg(process.pid, getattr(signal, how))
    _, words = process.communicate(timeout=END_TIMEOUT_S)
    left = [] if how == "SIGKILL" else psutil.wait_procs(family, timeout=END_TIMEOUT_S)[1]
    return Ended(process.returncode, words, left, unit_times(out))


@pytest.fixture(scope="module")
def ended(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Ended]]:
    """OUT of a run that was ended at each moment and went on after each; and how it ended."""
    out, found = tmp_path_factory.mktemp("ended") / "out", {}
    for moment, reached in MOMENTS.items():
        process = begin(tiny_dataset, out)
        wait_until(lambda: reached(out) or process.poll() is not None, moment)  # noqa: B023
        assert process.poll() is None, f"it ended before its end by {moment}"
        found[moment] = end(process, moment.split()[0], out)
    again = run_tiny("evaluate", tiny_dataset, out, *COMMON)
    assert again.code == 0, again.stderr
    return out, found


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda text: text.replace(" ", "-"))
def test_a_run_that_was_ended_goes_on_with_what_was_finished(moment: str, ended: tuple[Path, dict[str, Ended]]) -> None:
    out, found = ended
    assert found[moment].kept.items() <= unit_times(out).items(), "a finished unit was done again"


@pytest.mark.parametrize(("name", "exit_code"), [("SIGINT", 130), ("SIGHUP", 129)])
def test_ctrl_c_and_a_hangup_end_cleanly_and_leave_no_process(
    name: str, exit_code: int, ended: tuple[Path, dict[str, Ended]]
) -> None:
    (found,) = (how for moment, how in ended[1].items() if moment.startswith(name))
    assert found.code == exit_code
    assert "goes on from what was finished" in found.words
    assert "Traceback" not in found.words
    assert not found.left, f"still running: {found.left}"


def test_a_run_that_was_ended_ends_the_same(
    ended: tuple[Path, object], whole_run: Callable[[int], tuple[Path, Finished]]
) -> None:
    out, uninterrupted = ended[0], whole_run(2)[0]
    assert set(results(out)["status"]) == {"ok"}
    for variant in ("fp32", "ptq-onnxruntime", "finetune"):
        # To the last bit, whatever ran beside it and wherever it was ended.
        pd.testing.assert_series_equal(
            predictions(out, variant), predictions(uninterrupted, variant), check_exact=True, obj=variant
        )
