"""The end of a sweep whose trials failed: a sentence for what was to come of them, never a fault."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from qray.data.manifest import Manifest, digest_of
from qray.errors import QrayError
from qray.orchestrate.context import RunContext
from qray.orchestrate.placement import Placement
from qray.orchestrate.plan import Plan, make_plan
from qray.orchestrate.session import Slots
from qray.orchestrate.steps import Runner, Step
from qray.orchestrate.store import Store
from qray.orchestrate.sweep_steps import sweep_steps, trial_standings
from qray.study import Study

FP32 = {"name": "fp32", "method": "fp32", "engine": "eager"}
QAT = {"name": "qat", "method": "qat", "engine": "inductor"}
CONTROL = {"name": "control", "method": "finetune", "engine": "eager"}


def manifest() -> Manifest:
    names = ["a", "b", "c"]
    clips = pd.DataFrame(
        {
            "clip": names, "path": [f"/{name}.avi" for name in names], "target": np.arange(3.0),
            "split": ["TRAIN", "VAL", "TEST"], "content": names,
        }
    )  # fmt: skip
    return Manifest(clips, pd.DataFrame(), digest_of(clips), {})


def sweep_of(tmp_path: Path, trained: dict[str, Any] = QAT, epochs: Sequence[int] = (1,)) -> tuple[Store, Plan, Step]:
    """The last step of a sweep of two trials."""
    sweep = {"trials": 2, "epochs": list(epochs), "weight_bits": [8]}
    study = Study.model_validate({"name": "s", "variants": [FP32, trained], "sweep": sweep})
    plan, store = make_plan(study, manifest()), Store(tmp_path)
    run = RunContext(study, store, plan, Runner(store, Console(file=StringIO())), Slots(4, 0), Placement({}), None)
    return store, plan, sweep_steps(run)[-1]


def end(store: Store, trial: dict[str, Any], val_mae: float | None) -> None:
    status = {"status": "ok"} if val_mae is not None else {"status": "failed", "reason": "the loss became nan"}
    record = {"key": trial["key"], "settings": trial["settings"], "val_mae": val_mae}
    store.put("trial", trial["key"], record | status)


@pytest.mark.parametrize("trained", [QAT, CONTROL], ids=["qat", "its control alone"])
def test_a_sweep_of_which_a_trial_did_not_end_is_not_finished(tmp_path: Path, trained: dict[str, Any]) -> None:
    """Else its best would depend on what failed in passing, and so would all that is named after it."""
    store, plan, step = sweep_of(tmp_path, trained)
    end(store, plan.trials[0], 4.5)
    reason = "1 of 2 QAT trials did not finish; the next run tries them again: qat-w8-"
    with pytest.raises(QrayError, match=re.escape(reason) + ".*: the stream was silent"):
        step.finish({plan.trials[1]["key"]: "the stream was silent"})


def test_a_trial_that_diverged_is_a_result(tmp_path: Path) -> None:
    store, plan, step = sweep_of(tmp_path)
    end(store, plan.trials[0], None)
    end(store, plan.trials[1], 4.5)
    assert step.finish({})["best"]["8"]["key"] == plan.trials[1]["key"]


def test_a_trial_that_diverged_before_its_rung_is_not_run_again(tmp_path: Path) -> None:
    store, plan, _ = sweep_of(tmp_path, epochs=[4])
    for trial in plan.trials:
        store.put("trial", trial["keys"][0], {"status": "ok", "val_mae": 5.0})
    store.put("trial", plan.trials[0]["keys"][1], {"status": "ok", "val_mae": 4.0})
    store.put("trial", plan.trials[0]["keys"][2], {"status": "failed", "val_mae": None})
    assert [standing.state for standing in trial_standings(store, plan)] == ["diverged", "cut"]


def test_a_finished_sweep_has_no_rungs_left(tmp_path: Path) -> None:
    store, plan, step = sweep_of(tmp_path, epochs=[4])
    assert len(step.after) == 1
    assert step.after != [plan.train]
    store.put("sweep", plan.sweep, {"best": {}})
    assert sweep_of(tmp_path, epochs=[4])[2].after == [plan.train]


def test_a_width_of_which_every_trial_diverged_fails_the_sweep(tmp_path: Path) -> None:
    store, plan, step = sweep_of(tmp_path)
    for trial in plan.trials:
        end(store, trial, None)
    with pytest.raises(QrayError, match=re.escape("every QAT trial of [8] bits diverged")):
        step.finish({})
