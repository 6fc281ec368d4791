"""Layers measured by tasks side by side: on any number of CPUs, once, and on from where a kill left it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.runs import (
    TINY,
    Finished,
    here,
    kill,
    lines_with,
    run_tiny,
    start,
    tiny_here,
    unit_times,
    units,
    wait_until,
)

#: Those of the run on one CPU.
SETTINGS = ("--set", "sensitivity={clips: 6, observer: minmax}", "--set", "sensitivity.tasks=1")
WholeRun = Callable[[int], tuple[Path, Finished]]


def measure(data: Path, out: Path, cpus: int, *more: object) -> Finished:
    """Run the stage to its end."""
    done = run_tiny("sensitivity", data, out, *SETTINGS, "--num-cpus", cpus, *more)
    assert done.code == 0, done.stderr
    return done


def copy_trained(out: Path, to: Path) -> None:
    """A copy in which no layer is measured."""
    shutil.copytree(out, to, ignore=shutil.ignore_patterns("layers-*.json", "sensitivity-*.json"))


def record(out: Path) -> dict[str, Any]:
    """The sensitivity record of a run, without what tells when it was made."""
    (found,) = units(out, "sensitivity")
    return {key: value for key, value in found.items() if key not in ("started", "seconds")}


def figures(found: dict[str, Any]) -> list[float]:
    """SQNR of every state of every layer."""
    return [layer[state]["sqnr_db"] for layer in found["layers"] for state in ("alone", "all_but")]


def test_every_layer_is_measured(whole_run: WholeRun) -> None:
    found = record(whole_run(1)[0])
    assert (len(found["layers"]), found["n_clips"], found["split"]) == (29, 6, "VAL")
    assert None not in figures(found)


def test_the_command_prints_the_most_sensitive_layers(whole_run: WholeRun) -> None:
    assert "Most sensitive layers" in whole_run(1)[1].stdout


def test_show_prints_them_again(whole_run: WholeRun) -> None:
    shown = here("show", whole_run(1)[0])
    assert shown.code == 0, shown.stderr
    assert "Most sensitive layers" in shown.stdout


def test_the_same_command_again_does_no_work(whole_run: WholeRun, tiny_dataset: Path) -> None:
    out, _ = whole_run(1)
    before = unit_times(out)
    again = tiny_here("sensitivity", tiny_dataset, out, *SETTINGS)
    assert not lines_with(again.stderr, "start "), again.stderr
    assert unit_times(out) == before


@pytest.mark.slow
def test_a_killed_analysis_goes_on_and_ends_the_same_with_more_tasks_on_more_cpus(
    whole_run: WholeRun, tiny_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    copy_trained(whole_run(1)[0], out)
    # Of four tasks three run at once on two CPUs, so that one at least is left when the first has ended.
    more = ("--set", "sensitivity.tasks=4")
    process = start(
        "run", "sensitivity", "--study", TINY, "--data", tiny_dataset, "--out", out, *SETTINGS, "--num-cpus", 2, *more
    )
    try:
        wait_until(lambda: any((out / "units").glob("layers-*.json")), "the first layers")
    finally:
        kill(process)
    kept = unit_times(out)
    measure(tiny_dataset, out, 2, *more)
    assert kept.items() <= unit_times(out).items(), "finished layers were measured again"
    assert figures(record(out)) == pytest.approx(figures(record(whole_run(1)[0])), rel=1e-4)
