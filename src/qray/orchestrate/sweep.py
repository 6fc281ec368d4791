"""The QAT sweep: Ray Tune with ASHA over QAT settings; the only importer of ray.tune.

Tune's own storage is scheduler memory. Weights and figures of a trial travel through a mailbox to the driver, which
writes them as units; a sweep that was killed runs only the trials that have none.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from qray.data.stream import StreamPlan, clip_dataset, stream_batches
from qray.model.training import FitSettings, fit, load_checkpoint
from qray.orchestrate.work import (
    SplitClips,
    model_from_state,
    predict_stream,
    to_train_batches,
    training_device,
    training_threads,
)
from qray.study import ClipSpec, Model, Sweep, Training


@dataclass(frozen=True)
class SweepJob:
    """What every trial shares. `training` holds the settings that are not swept."""

    model: Model
    training: Training
    clip: ClipSpec
    sweep: Sweep
    seed: int
    slot_cpus: float
    options: dict[str, Any]
    max_concurrent: int
    timeout_s: float
    storage: str
    board: Any


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


def best_trials(trials: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The finished trial with the least VAL MAE, per weight width."""
    finished = [trial for trial in trials if trial["status"] == "ok" and trial["val_mae"] is not None]
    best: dict[int, dict[str, Any]] = {}
    for trial in sorted(finished, key=lambda t: (t["val_mae"], t["key"])):
        best.setdefault(int(trial["settings"]["weight_bits"]), trial)
    return best


class AshaByWidth(FIFOScheduler):
    """One ASHA for each weight width: 4-bit trials are not stopped for being worse than 8-bit ones.

    Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020.
    """

    def __init__(self, widths: tuple[int, ...], max_epochs: int, reduction_factor: int) -> None:
        super().__init__()
        self._each = {
            width: ASHAScheduler(
                time_attr="epoch", max_t=max_epochs + 1, grace_period=1, reduction_factor=reduction_factor
            )
            for width in widths
        }

    def _of(self, trial: Any) -> ASHAScheduler:
        return self._each[trial.config["trial"]["settings"]["weight_bits"]]

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        for scheduler in self._each.values():
            scheduler.set_search_properties(metric, mode, **spec)
        return super().set_search_properties(metric, mode, **spec)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        # A trial that has reached its own last epoch ends by itself.
        if result["epoch"] >= trial.config["trial"]["settings"]["epochs"]:
            return str(TrialScheduler.CONTINUE)
        return str(self._of(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._of(trial).on_trial_complete(tune_controller, trial, result)


class Mailbox:
    """An actor where trials leave what they have; the driver empties it. It holds no CPU."""

    def __init__(self) -> None:
        self._items: list[dict[str, Any]] = []

    def post(self, item: dict[str, Any]) -> None:
        """Leave an item."""
        self._items.append(item)

    def take(self) -> list[dict[str, Any]]:
        """Everything left since the last call."""
        items, self._items = self._items, []
        return items


def run_trial(
    config: dict[str, Any], job: SweepJob, weights: bytes, train: SplitClips, val: SplitClips, mailbox: Any
) -> None:
    """One trial: QAT from the FP32 checkpoint on the training stream, VAL after each epoch."""
    from qray.orchestrate.telemetry import Telemetry
    from qray.variants import pt2e

    settings, key = config["trial"]["settings"], config["trial"]["key"]
    torch.set_num_threads(training_threads(job.max_concurrent))
    torch.manual_seed(job.seed)
    device = training_device()
    name = f"qat-w{settings['weight_bits']}-{key[:6]}"
    model = model_from_state(job.model, load_checkpoint(weights)["model"]).channels_last()
    size = job.clip.image_size
    example = torch.zeros((2, job.clip.frames, size, size, 3), dtype=torch.uint8)
    qat = pt2e.QatSettings(
        weight_bits=settings["weight_bits"],
        observer=settings["observer"],
        keep_fp32=tuple(settings["keep_fp32"]),
    )
    module = pt2e.prepare_qat(model, example, qat)
    training = qat_training(job.training, settings)
    plan = StreamPlan(
        job.clip, "train", training.batch_size, job.seed, epochs=training.epochs,
        cpus_per_task=job.slot_cpus, timeout_s=job.timeout_s,
    )  # fmt: skip
    targets = train.clips["target"].to_numpy()
    failed: dict[int, str] = {}
    stream = stream_batches(clip_dataset(train.ref, len(targets), plan), plan, name)
    fit_settings = FitSettings(
        training, plan.steps_per_epoch(len(targets)), model.target_spread, job.seed, "fp32", device
    )

    def on_epoch(epoch: int) -> None:
        pt2e.set_training(module, True)
        if epoch >= settings["freeze_batch_norm_at"] * training.epochs:
            pt2e.freeze_batch_norm(module)
        if epoch >= settings["freeze_observers_at"] * training.epochs:
            pt2e.freeze_observers(module)

    val_plan = StreamPlan(
        job.clip.single_window(),
        "eval",
        training.batch_size,
        cpus_per_task=job.slot_cpus,
        timeout_s=job.timeout_s,
    )

    def predict(clips: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(clips).to(device)).float().cpu().numpy()

    telemetry = Telemetry(name, job.board, training.epochs * plan.rows_per_epoch(len(targets)))
    seconds = 0.0
    for result in fit(module, to_train_batches(stream, targets, failed), fit_settings, None, on_epoch, telemetry.step):
        pt2e.set_training(module, False)
        val_stream = stream_batches(val.dataset(val_plan), val_plan, f"{name} VAL")
        predicted, _ = predict_stream(predict, val_stream, len(val.clips))
        val_mae = float(np.nanmean(np.abs(predicted - val.clips["target"].to_numpy())))
        telemetry.mae("VAL", val_mae)
        seconds += result.seconds
        item = {
            "key": key, "settings": settings, "epoch": result.epoch + 1, "loss": result.loss, "val_mae": val_mae,
            "seconds": seconds, "checkpoint": result.checkpoint, "qat": qat.model_dump(mode="json"),
        }  # fmt: skip
        ray.get(mailbox.post.remote(item), timeout=job.timeout_s)
        if result.epoch + 1 == training.epochs:
            telemetry.end()
        tune.report({"epoch": result.epoch + 1, "val_mae": val_mae, "loss": result.loss})


@ray.remote(num_cpus=0, max_retries=0)
def sweep(
    job: SweepJob,
    trials: list[dict[str, Any]],
    weights: Any,
    train: SplitClips,
    val: SplitClips,
    mailbox: Any,
) -> list[dict[str, Any]]:
    """Run the trials that are left: `trials` are {"key", "settings"}. Returns {"key", "error"} of those that failed."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Tune would copy the session's working directory into every trial's folder.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    trainable = tune.with_parameters(run_trial, job=job, weights=weights, train=train, val=val, mailbox=mailbox)
    resources = {"cpu": job.options["num_cpus"], "gpu": job.options.get("num_gpus", 0)}
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={"trial": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(
            metric="val_mae", mode="min", max_concurrent_trials=job.max_concurrent, reuse_actors=True,
            scheduler=AshaByWidth(
                tuple(sorted({t["settings"]["weight_bits"] for t in trials})),
                max(job.sweep.epochs), job.sweep.reduction_factor,
            ),
            trial_name_creator=lambda trial: _trial_name(trial.config),
            trial_dirname_creator=lambda trial: _trial_name(trial.config),
        ),
        run_config=tune.RunConfig(
            name="qat", storage_path=str(Path(job.storage).resolve()), verbose=0, log_to_file=True,
        ),
    )  # fmt: skip
    results = tuner.fit()
    return [
        {"key": result.config["trial"]["key"], "error": str(result.error).strip().splitlines()[-1]}
        for result in results
        if result.error
    ]


def _trial_name(config: dict[str, Any]) -> str:
    trial = config["trial"]
    return f"qat-w{trial['settings']['weight_bits']}-{trial['key'][:6]}"
