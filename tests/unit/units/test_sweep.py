"""The end of a sweep whose trials failed: a sentence for what was to come of them, never a fault."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.graphs import manifest_of, only, sweep_of
from support.local_backend import LocalBackend

from qray.errors import QrayError
from qray.graph.runner import Runner
from qray.graph.store import Store
from qray.graph.unit import Unit
from qray.study import Study
from qray.units.context import RunContext
from qray.units.plan import study_units
from qray.units.sweep import Sweep

FP32 = {"name": "fp32", "method": "fp32", "engine": "eager"}
QAT = {"name": "qat", "method": "qat", "engine": "inductor"}
CONTROL = {"name": "control", "method": "finetune", "engine": "eager"}


class Ended:
    """A sweep of two trials, in a driver to whom their Ray task has returned."""

    def __init__(self, out: Path, trained: dict[str, Any] = QAT, epochs: Sequence[int] = (1,)) -> None:
        settings = {"trials": 2, "epochs": list(epochs), "weight_bits": [8]}
        study = Study.model_validate({"name": "s", "variants": [FP32, trained], "sweep": settings})
        clips = manifest_of({"TRAIN": 1, "VAL": 1, "TEST": 1})
        graph, backend = study_units(study, clips), LocalBackend()
        self.unit: Unit = only(graph, "sweep")
        self.task: Sweep = sweep_of(graph)
        self.store = Store(out)
        runner = Runner(self.store, backend, Console(file=StringIO()))
        self.run = RunContext(study, clips, self.store, backend, runner)  # type: ignore[arg-type]

    def finish(self, failed: dict[str, str]) -> dict[str, Any] | None:
        """What comes of it when these trials failed."""
        return self.task.finish(self.unit, self.run, {"failed": {key: (why, False) for key, why in failed.items()}})


def end(store: Store, trial: dict[str, Any], val_mae: float | None) -> None:
    status = {"status": "ok"} if val_mae is not None else {"status": "failed", "reason": "the loss became nan"}
    record = {"key": trial["key"], "settings": trial["settings"], "val_mae": val_mae}
    store.put("trial", trial["key"], record | status)


@pytest.mark.parametrize("trained", [QAT, CONTROL], ids=["qat", "its control alone"])
def test_a_sweep_of_which_a_trial_did_not_end_is_not_finished(tmp_path: Path, trained: dict[str, Any]) -> None:
    """Else its best would depend on what failed in passing, and so would all that is named after it."""
    sweep = Ended(tmp_path, trained)
    end(sweep.store, sweep.task.trials[0], 4.5)
    reason = "1 of 2 QAT trials did not finish; the next run tries them again: qat-w8-"
    with pytest.raises(QrayError, match=re.escape(reason) + ".*: the stream was silent"):
        sweep.finish({sweep.task.trials[1]["key"]: "the stream was silent"})


def test_a_trial_that_diverged_is_a_result(tmp_path: Path) -> None:
    sweep = Ended(tmp_path)
    end(sweep.store, sweep.task.trials[0], None)
    end(sweep.store, sweep.task.trials[1], 4.5)
    record = sweep.finish({})
    assert record is not None
    assert record["best"]["8"]["key"] == sweep.task.trials[1]["key"]


def test_a_trial_that_diverged_before_its_rung_is_not_run_again(tmp_path: Path) -> None:
    sweep = Ended(tmp_path, epochs=[4])
    store, trials = sweep.store, sweep.task.trials
    for trial in trials:
        store.put("trial", trial["keys"][0], {"status": "ok", "val_mae": 5.0})
    store.put("trial", trials[0]["keys"][1], {"status": "ok", "val_mae": 4.0})
    store.put("trial", trials[0]["keys"][2], {"status": "failed", "val_mae": None})
    assert [standing.state for standing in sweep.task.standings(store)] == ["diverged", "cut"]


def test_a_sweep_is_not_through_while_a_rung_is_left(tmp_path: Path) -> None:
    sweep = Ended(tmp_path, epochs=[4])
    for trial in sweep.task.trials:
        sweep.store.put("trial", trial["keys"][0], {"status": "ok", "val_mae": 5.0})
    assert sweep.finish({}) is None


def test_a_width_of_which_every_trial_diverged_fails_the_sweep(tmp_path: Path) -> None:
    sweep = Ended(tmp_path)
    for trial in sweep.task.trials:
        end(sweep.store, trial, None)
    with pytest.raises(QrayError, match=re.escape("every QAT trial of [8] bits diverged")):
        sweep.finish({})
