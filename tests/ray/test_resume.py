"""Killed and run again, and what it had started killed under it: what was finished is kept, nothing else is left, and
the end is the same as without."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.faults import Ended, end, equals, strike
from support.runs import TINY, Finished, environment, results, start, wait_until

from qray.graph.guard import LAST_WORDS

#: What work is killed as soon as there is some of that name, and what is said of it.
VICTIMS = {
    "ray::train:fp32": "train fp32 goes on from its last checkpoint",
    "ray::QatTrial": "was lost, and goes on from its last epoch",
    "ray::evaluate:": "which starts again",
}


@dataclass(frozen=True)
class Twice:
    """OUT of a run that was ended and went on, how it ended the first and the second time, and all that it said."""

    out: Path
    killed: Ended
    after: Ended
    said: str


@pytest.fixture(scope="module")
def twice(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twice]:
    """A run on two CPUs whose work was killed and, when the trial that was goes on, the command itself; then on four.
    What else may be killed, and when: test_faults.py."""
    folder = tmp_path_factory.mktemp("ended")
    out, log = folder / "out", folder / "log"
    # Short, because Ray's sockets are below it.
    temporary = Path(tempfile.mkdtemp(prefix="q"))

    def begin(cpus: int) -> subprocess.Popen[str]:
        return start("run", "all", "--study", TINY, "--data", tiny_dataset, "--out", out, "--num-cpus", cpus,
                     log=log, env=environment(TMPDIR=str(temporary), PYTHONUNBUFFERED="1"))  # fmt: skip

    def reach(words: str) -> None:
        wait_until(lambda: words in log.read_text() or process.poll() is not None, words)
        assert process.poll() is None, f"it ended before {words}: {log.read_text()}"

    process = begin(2)
    reach("epoch 1/3")
    for name in VICTIMS:
        strike(process, name)
    for words in VICTIMS.values():
        reach(words)
    killed, said = end(process, "SIGKILL", out, temporary), log.read_text()
    after = end(begin(4), "of itself", out, temporary)
    yield Twice(out, killed, after, said + log.read_text())
    shutil.rmtree(temporary)


def test_a_run_that_was_ended_goes_on_with_what_was_finished(twice: Twice) -> None:
    assert twice.after.code == 0, twice.said
    assert twice.killed.kept.items() <= twice.after.kept.items(), "a finished unit was done again"
    assert (twice.killed.left, twice.after.left) == ([], [])


def test_a_command_that_was_killed_is_spoken_for(twice: Twice) -> None:
    assert LAST_WORDS in twice.said


def test_no_epoch_was_trained_twice(twice: Twice) -> None:
    """Nor was the work whose process was killed given up."""
    for finished in ("train fp32: epoch 1/3", "train fp32: epoch 2/3", "train fp32: epoch 3/3"):
        assert twice.said.count(finished) == 1


def test_a_run_that_was_ended_ends_the_same(twice: Twice, whole_run: Callable[[int], tuple[Path, Finished]]) -> None:
    """Whatever ran beside it, wherever it was ended, and on another number of CPUs."""
    assert set(results(twice.out)["status"]) == {"ok"}
    equals(twice.out, whole_run(1)[0])
