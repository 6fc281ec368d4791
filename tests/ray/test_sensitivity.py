"""Layers measured by tasks side by side: on any number of CPUs, once, and on from where a kill left it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from runs import TINY, Finished, kill, lines_with, qray, run_tiny, start, unit_times, wait_until

SETTINGS = ("--set", "training.epochs=1", "--set", "sensitivity.clips=6")


@pytest.fixture(scope="module")
def trained(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT in which FP32 is trained and nothing else is done."""
    out = tmp_path_factory.mktemp("trained") / "out"
    done = run_tiny("train", tiny_dataset, out, *SETTINGS)
    assert done.code == 0, done.stderr
    return out


Measured = Callable[[int], tuple[Path, Finished]]


@pytest.fixture(scope="module")
def measured(tiny_dataset: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """OUT and how the command ended, on a number of CPUs."""

    @cache
    def run(cpus: int) -> tuple[Path, Finished]:
        out = tmp_path_factory.mktemp("measured") / "out"
        shutil.copytree(trained, out)
        done = run_tiny("sensitivity", tiny_dataset, out, *SETTINGS, "--num-cpus", cpus)
        assert done.code == 0, done.stderr
        return out, done

    return run


def record(out: Path) -> dict[str, Any]:
    """The sensitivity record of a run, without what tells when it was made."""
    (path,) = (out / "units").glob("sensitivity-*.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key not in ("started", "seconds")}


def figures(found: dict[str, Any]) -> list[float]:
    """SQNR of every state of every layer."""
    return [layer[state]["sqnr_db"] for layer in found["layers"] for state in ("alone", "all_but")]


@pytest.mark.parametrize("cpus", [1, 4])
def test_every_layer_is_measured(cpus: int, measured: Measured) -> None:
    found = record(measured(cpus)[0])
    assert (len(found["layers"]), found["n_clips"], found["split"]) == (29, 6, "VAL")
    assert None not in figures(found)


def test_the_figures_do_not_depend_on_the_number_of_cpus(measured: Measured) -> None:
    assert figures(record(measured(1)[0])) == pytest.approx(figures(record(measured(4)[0])), rel=1e-4)


def test_the_command_prints_the_most_sensitive_layers(measured: Measured) -> None:
    assert "Most sensitive layers" in measured(1)[1].stdout


def test_show_prints_them_again(measured: Measured) -> None:
    shown = qray("show", measured(1)[0])
    assert shown.code == 0, shown.stderr
    assert "Most sensitive layers" in shown.stdout


def test_the_same_command_again_does_no_work(measured: Measured, tiny_dataset: Path) -> None:
    out, _ = measured(1)
    before = unit_times(out)
    again = run_tiny("sensitivity", tiny_dataset, out, *SETTINGS)
    assert again.code == 0, again.stderr
    assert not lines_with(again.stderr, "start "), again.stderr
    assert unit_times(out) == before


def test_a_killed_analysis_goes_on_and_ends_the_same(
    measured: Measured, trained: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    settings = (*SETTINGS, "--set", "sensitivity.tasks=5", "--num-cpus", 2)
    process = start("run", "sensitivity", "--study", TINY, "--data", tiny_dataset, "--out", out, *settings)
    wait_until(lambda: any((out / "units").glob("layers-*.json")), "the first layers")
    kill(process)
    kept = unit_times(out)
    again = run_tiny("sensitivity", tiny_dataset, out, *settings)
    assert again.code == 0, again.stderr
    assert kept.items() <= unit_times(out).items(), "finished layers were measured again"
    assert figures(record(out)) == pytest.approx(figures(record(measured(1)[0])), rel=1e-4)
