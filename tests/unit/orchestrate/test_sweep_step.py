"""The end of a sweep whose trials failed: a sentence for what was to come of them, never a fault."""

from __future__ import annotations

import re
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
from qray.orchestrate.plan import make_plan
from qray.orchestrate.session import Slots
from qray.orchestrate.steps import Runner
from qray.orchestrate.store import Store
from qray.orchestrate.training_steps import sweep_step
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


@pytest.mark.parametrize("trained", [QAT, CONTROL], ids=["qat", "its control alone"])
def test_a_width_of_which_no_trial_finished_fails_the_sweep_with_the_trials_reason(
    tmp_path: Path, trained: dict[str, Any]
) -> None:
    study = Study.model_validate({"name": "s", "variants": [FP32, trained], "sweep": {"trials": 2}})
    plan, store = make_plan(study, manifest()), Store(tmp_path)
    run = RunContext(study, store, plan, Runner(store, Console(file=StringIO())), Slots(4, 0), Placement({}), None)
    errors = [{"key": trial["key"], "error": "the stream was silent"} for trial in plan.trials]
    with pytest.raises(QrayError, match=re.escape("no QAT trial of [8] bits finished: the stream was silent")):
        sweep_step(run).finish(errors)
