"""Killed and run again, and what it had started killed under it: what was finished is kept, nothing else is left, and
the end is the same as without."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.faults import Ended, end, equals, strike
from support.runs import MIXED, TINY, Finished, environment, results, start, unit_times, wait_until

from qray.graph.guard import LAST_WORDS


def any_of(folder: str, pattern: str) -> Callable[[Path], bool]:
    """Whether OUT holds such a file."""
    return lambda out: any((out / folder).glob(pattern))


#: When a run is ended, one after the other in one OUT, and by what.
MOMENTS = {
    "SIGINT after the second epoch": any_of("checkpoints", "*/epoch-0001.pt"),
    "SIGKILL after the first trial": any_of("units", "trial-*.json"),
    "at its end": lambda out: True,
}
#: On how many CPUs each is.
CPUS = dict(zip(MOMENTS, (2, 2, 4), strict=True))
#: What work is killed before, as soon as there is some of that name after what.
VICTIMS = {
    "SIGINT after the second epoch": (any_of("checkpoints", "*/epoch-0000.pt"), "ray::train:fp32"),
    "SIGKILL after the first trial": (any_of("checkpoints", "*"), "ray::QatTrial"),
    "at its end": (any_of("checkpoints", "*"), "ray::evaluate:"),
}


@pytest.fixture(scope="module")
def ended(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Ended]]]:
    """OUT of a run that was ended at each moment and went on after each; and how it ended."""
    out, found = tmp_path_factory.mktemp("ended") / "out", {}
    # Short, because Ray's sockets are below it.
    temporary = Path(tempfile.mkdtemp(prefix="q"))
    for moment, reached in MOMENTS.items():
        process = start("run", "all", "--study", TINY, "--data", tiny_dataset, "--out", out,
                        "--num-cpus", CPUS[moment], *MIXED, env=environment(TMPDIR=str(temporary)))  # fmt: skip
        if moment in VICTIMS:
            after, name = VICTIMS[moment]
            wait_until(lambda: after(out) or process.poll() is not None, f"{name} {moment}")  # noqa: B023
            strike(process, name)
        wait_until(lambda: reached(out) or process.poll() is not None, moment)  # noqa: B023
        assert process.poll() is None, f"it ended before its end by {moment}: {process.communicate()}"
        found[moment] = end(process, moment.split()[0], out, temporary)
    yield out, found
    shutil.rmtree(temporary)


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda text: text.replace(" ", "-"))
def test_a_run_that_was_ended_goes_on_with_what_was_finished(moment: str, ended: tuple[Path, dict[str, Ended]]) -> None:
    out, found = ended
    assert found[moment].kept.items() <= unit_times(out).items(), "a finished unit was done again"
    assert not found[moment].left


@pytest.mark.parametrize(("name", "exit_code"), [("SIGINT", 130), ("at", 0)])
def test_ctrl_c_ends_cleanly(name: str, exit_code: int, ended: tuple[Path, dict[str, Ended]]) -> None:
    (found,) = (how for moment, how in ended[1].items() if moment.startswith(name))
    assert found.code == exit_code, found.words
    assert ("goes on from what was finished" in found.words) == bool(exit_code)
    assert "Traceback" not in found.words


def test_a_command_that_was_killed_is_spoken_for(ended: tuple[Path, dict[str, Ended]]) -> None:
    assert LAST_WORDS in ended[1]["SIGKILL after the first trial"].words


@pytest.mark.parametrize(("moment", "said"), [
    ("SIGINT after the second epoch", "train fp32 goes on from its last checkpoint"),
    ("SIGKILL after the first trial", "was lost, and goes on from its last epoch"),
    ("at its end", "which starts again"),
], ids=["training task", "trial", "evaluation"])  # fmt: skip
def test_work_whose_process_is_killed_is_done_in_the_same_run(
    moment: str, said: str, ended: tuple[Path, dict[str, Ended]]
) -> None:
    assert said in ended[1][moment].words


def test_no_epoch_was_trained_twice(ended: tuple[Path, dict[str, Ended]]) -> None:
    said = "".join(how.words for how in ended[1].values())
    for finished in ("train fp32: epoch 1/3", "train fp32: epoch 2/3", "train fp32: epoch 3/3"):
        assert said.count(finished) == 1


def test_a_run_that_was_ended_ends_the_same(
    ended: tuple[Path, object], whole_run: Callable[[int], tuple[Path, Finished]]
) -> None:
    """Whatever ran beside it, wherever it was ended, and on another number of CPUs."""
    assert set(results(ended[0])["status"]) == {"ok"}
    equals(ended[0], whole_run(1)[0])
