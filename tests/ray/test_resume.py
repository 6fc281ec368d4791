"""Killed and run again: what was finished is kept, and the end is the same as without the kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
from runs import END_TIMEOUT_S, Finished, kill, predictions, results, run_tiny, start, unit_times, wait_until
from runs import TINY as STUDY

COMMON = ("--num-cpus", 2)


def begin(data: Path, out: Path) -> object:
    """Start `qray run all` of the tiny study."""
    return start("run", "all", "--study", STUDY, "--data", data, "--out", out, *COMMON)


MOMENTS = {
    "after the first epoch": lambda out: any((out / "checkpoints").glob("*/epoch-0000.pt")),
    "after the first build": lambda out: any((out / "units").glob("build-*.json")),
    "after the first trial": lambda out: any((out / "units").glob("trial-*.json")),
}


@pytest.fixture(scope="module")
def killed(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, int]]]:
    """OUT of a run that was killed at each moment and went on after each; and the units that each kill left, when."""
    out, kept = tmp_path_factory.mktemp("killed") / "out", {}
    for moment, reached in MOMENTS.items():
        process = begin(tiny_dataset, out)
        wait_until(lambda: reached(out) or process.poll() is not None, moment)  # noqa: B023
        assert process.poll() is None, f"it ended before it could be killed {moment}"
        kill(process)
        kept[moment] = unit_times(out)
    again = run_tiny("evaluate", tiny_dataset, out, *COMMON)
    assert again.code == 0, again.stderr
    return out, kept


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda text: text.replace(" ", "-"))
def test_a_killed_run_goes_on_with_what_was_finished(
    moment: str, killed: tuple[Path, dict[str, dict[str, int]]]
) -> None:
    out, kept = killed
    assert kept[moment].items() <= unit_times(out).items(), "a finished unit was done again"


def test_a_killed_run_ends_the_same(
    killed: tuple[Path, object], whole_run: Callable[[int], tuple[Path, Finished]]
) -> None:
    out, uninterrupted = killed[0], whole_run(2)[0]
    assert set(results(out)["status"]) == {"ok"}
    for variant in ("fp32", "ptq-onnxruntime", "finetune"):
        # To the last bit, whatever ran beside it and wherever it was killed.
        pd.testing.assert_series_equal(
            predictions(out, variant), predictions(uninterrupted, variant), check_exact=True, obj=variant
        )


@pytest.mark.parametrize(("name", "exit_code"), [("SIGINT", 130), ("SIGHUP", 129)])
def test_ctrl_c_and_a_hangup_end_cleanly_and_leave_no_process(
    name: str, exit_code: int, tiny_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = begin(tiny_dataset, out)
    wait_until(lambda: any((out / "checkpoints").glob("*/epoch-*.pt")), "a checkpoint")
    family = psutil.Process(process.pid).children(recursive=True)
    # To all of them at once, as a terminal does.
    os.killpg(process.pid, getattr(signal, name))
    _, stderr = process.communicate(timeout=END_TIMEOUT_S)
    assert process.returncode == exit_code
    assert "goes on from what was finished" in stderr
    assert "Traceback" not in stderr
    _, alive = psutil.wait_procs(family, timeout=END_TIMEOUT_S)
    assert not alive, f"still running: {alive}"
