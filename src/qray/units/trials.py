"""The trials of a QAT sweep: what is tried, what it is called, and which is best."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from qray.study import Sweep, Training


def trial_settings(sweep: Sweep, seed: int) -> list[dict[str, Any]]:
    """The trials of a sweep: drawn without replacement, seeded, the same number for every weight width."""
    grid = [
        {"lr": lr, "epochs": epochs, "observer": observer, "freeze_batch_norm_at": norm, "freeze_observers_at": ranges,
         "keep_fp32": list(keep)}
        for lr, epochs, observer, norm, ranges, keep in itertools.product(
            sweep.lr, sweep.epochs, sweep.observer, sweep.freeze_batch_norm_at, sweep.freeze_observers_at,
            sweep.keep_fp32,
        )
    ]  # fmt: skip
    widths = list(dict.fromkeys(sweep.weight_bits))
    shares = [sweep.trials // len(widths) + (i < sweep.trials % len(widths)) for i in range(len(widths))]
    trials: list[dict[str, Any]] = []
    for width, share in zip(widths, shares, strict=True):
        order = np.random.default_rng((seed, width)).permutation(len(grid))
        trials += [{"weight_bits": width, **grid[i]} for i in order[:share]]
    return trials


def best_trials(trials: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The trial with the least VAL MAE, per weight width, of the records of whole trials."""
    best: dict[int, dict[str, Any]] = {}
    for trial in sorted(trials, key=lambda t: (t["val_mae"], t["key"])):
        best.setdefault(int(trial["settings"]["weight_bits"]), trial)
    return best


def qat_training(training: Training, settings: dict[str, Any]) -> Training:
    """The fit settings of a trial, and of its FP32 control: a short one-cycle at the trial's learning rate."""
    return training.model_copy(
        update={
            "lr": settings["lr"],
            "epochs": settings["epochs"],
            "precision": "fp32",
            "schedule": "onecycle",
        }
    )


def group_name(trial: dict[str, Any]) -> str:
    """The name of the placement group in which Tune holds a trial's slot."""
    return f"slot of {trial_name(trial)}"


def trial_name(trial: dict[str, Any]) -> str:
    """The name that a trial ({"key": of the whole trial, "settings"}) has in the table, the log and the dashboard."""
    return f"qat-w{trial['settings']['weight_bits']}-{trial['key'][:6]}"
