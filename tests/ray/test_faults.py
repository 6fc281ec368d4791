"""What may be killed in a run, at moments that are drawn, many times: the same command finishes, nothing that was
finished is done again, nothing is left behind, and the table is that of an undisturbed run."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from support.faults import end, strike
from support.runs import TINY, Finished, environment, predictions, results, start, wait_until

pytestmark = pytest.mark.slow

WholeRun = Callable[[int], tuple[Path, Finished]]
#: The line that a phase begins with.
PHASES = (
    "start train fp32", "train fp32: epoch 2/3", "trial qat", "start build", "start evaluate fp32", "start memory",
    "start measure latency", "start measure the costs", "done  measure the costs",
)  # fmt: skip
#: By the command line of the process: what a Ray is made of, without which the run ends; and what qray does in it.
OF_RAY = ("raylet/raylet", "gcs_server")
VICTIMS = (*OF_RAY, "ray::ReadClipNumbers", "mailbox:qat", "ray::Board", "ray::sweep", "ray::build", "ray::memory",
           "qray.measure")  # fmt: skip
DELAY_S = 4.0


@pytest.fixture
def temporary() -> Iterator[Path]:
    """TMPDIR of runs: short, because Ray's sockets are below it."""
    folder = Path(tempfile.mkdtemp(prefix="q"))
    yield folder
    shutil.rmtree(folder)


def begin(data: Path, out: Path, temporary: Path, log: Path) -> subprocess.Popen[str]:
    """A run of the tiny study."""
    return start("run", "all", "--study", TINY, "--data", data, "--out", out, "--num-cpus", 2, log=log,
                 env=environment(TMPDIR=str(temporary), PYTHONUNBUFFERED="1"))  # fmt: skip


def equals(out: Path, undisturbed: Path) -> None:
    """Figure by figure, except timings."""
    ours, theirs = results(out), results(undisturbed)
    same = ["variant", "status", "reason", "mae", "mae_low", "mae_high", "delta_mae", "verdict", "val_mae", "shippable"]
    pd.testing.assert_frame_equal(ours[same], theirs[same], check_exact=True)
    for variant in ("fp32", "ptq-onnxruntime", "finetune"):
        pd.testing.assert_series_equal(predictions(out, variant), predictions(undisturbed, variant), check_exact=True)


@pytest.mark.parametrize("phase", PHASES)
def test_a_driver_that_is_killed_at_a_random_moment_of_a_phase_costs_what_was_in_flight(
    phase: str, tiny_dataset: Path, whole_run: WholeRun, tmp_path: Path, temporary: Path
) -> None:
    out, log, seed = tmp_path / "out", tmp_path / "log", random.SystemRandom().randrange(1000)
    process = begin(tiny_dataset, out, temporary, log)
    wait_until(lambda: process.poll() is not None or phase in log.read_text(), phase)
    time.sleep(random.Random(seed).uniform(0, DELAY_S))
    struck = end(process, "SIGKILL", out, temporary)
    assert not struck.left, f"seed {seed}"
    again = end(begin(tiny_dataset, out, temporary, log), "of itself", out, temporary)
    assert again.code == 0, (seed, log.read_text())
    assert struck.kept.items() <= again.kept.items(), f"seed {seed}: a finished unit was done again"
    equals(out, whole_run(2)[0])


@pytest.mark.parametrize("victim", VICTIMS)
def test_whatever_is_killed_the_same_command_finishes(
    victim: str, tiny_dataset: Path, whole_run: WholeRun, tmp_path: Path, temporary: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    process = begin(tiny_dataset, out, temporary, log)
    wait_until(lambda: process.poll() is not None or "epoch 1/3" in log.read_text(), "the first epoch")
    strike(process, victim)
    struck = end(process, "of itself", out, temporary)
    assert not struck.left
    assert (struck.code != 0) == (victim in OF_RAY), log.read_text()
    again = end(begin(tiny_dataset, out, temporary, log), "of itself", out, temporary)
    assert again.code == 0, log.read_text()
    assert struck.kept.items() <= again.kept.items(), "a finished unit was done again"
    equals(out, whole_run(2)[0])
