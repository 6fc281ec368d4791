"""One QAT trial: from the FP32 checkpoint, on the training stream, VAL after each epoch. Knows nothing of Tune."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qray.data.stream import StreamPlan, clip_dataset, stream_batches
from qray.model.training import FitSettings, fit, load_checkpoint
from qray.orchestrate.clips import SplitClips, named_failures
from qray.orchestrate.telemetry import Telemetry
from qray.orchestrate.work import (
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


def trial_name(trial: dict[str, Any]) -> str:
    """The name that a trial ({"key", "settings"}) has in the table, the log and the dashboard."""
    return f"qat-w{trial['settings']['weight_bits']}-{trial['key'][:6]}"


def train_qat(
    name: str, trial: dict[str, Any], job: SweepJob, weights: bytes, train: SplitClips, val: SplitClips
) -> Generator[dict[str, Any], None, None]:
    """Train with fake-quantization; yield a record after each epoch.

    `weights` is the FP32 checkpoint. A record holds key, settings, epoch (from 1), loss, val_mae, seconds (of training,
    so far), checkpoint (bytes) and qat (the `QatSettings` that its state_dict fits).
    """
    from qray.variants import pt2e

    settings = trial["settings"]
    torch.set_num_threads(training_threads(job.max_concurrent))
    torch.manual_seed(job.seed)
    device = training_device()
    model = model_from_state(job.model, load_checkpoint(weights)["model"]).channels_last()
    size = job.clip.image_size
    example = torch.zeros((2, job.clip.frames, size, size, 3), dtype=torch.uint8)
    qat = pt2e.QatSettings(
        weight_bits=settings["weight_bits"],
        observer=settings["observer"],
        keep_fp32=tuple(settings["keep_fp32"]),
        reduce_range=settings["reduce_range"],
    )
    module = pt2e.prepare_qat(model, example, qat)
    training = qat_training(job.training, settings)
    plan = StreamPlan(
        job.clip, "train", training.batch_size, job.seed, epochs=training.epochs, cpus_per_task=job.slot_cpus,
        timeout_s=job.timeout_s,
    )  # fmt: skip
    val_plan = StreamPlan(
        job.clip.single_window(), "eval", training.batch_size, cpus_per_task=job.slot_cpus, timeout_s=job.timeout_s
    )
    targets, val_targets = train.clips["target"].to_numpy(), val.clips["target"].to_numpy()
    steps = plan.steps_per_epoch(len(targets))
    fit_settings = FitSettings(training, steps, model.target_spread, job.seed, "fp32", device)
    telemetry = Telemetry(name, job.board, training.epochs * plan.rows_per_epoch(len(targets)))

    def on_epoch(epoch: int) -> None:
        pt2e.set_training(module, True)
        if epoch >= settings["freeze_batch_norm_at"] * training.epochs:
            pt2e.freeze_batch_norm(module)
        if epoch >= settings["freeze_observers_at"] * training.epochs:
            pt2e.freeze_observers(module)

    def predict(clips: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(clips).to(device)).float().cpu().numpy()

    stream = stream_batches(clip_dataset(train.ref, len(targets), plan), plan, name)
    seconds, missed = 0.0, dict[int, str]()
    for result in fit(module, to_train_batches(stream, targets, missed), fit_settings, None, on_epoch, telemetry.step):
        pt2e.set_training(module, False)
        val_stream = stream_batches(val.dataset(val_plan), val_plan, f"{name} VAL")
        predicted, failed = predict_stream(predict, val_stream, len(val_targets))
        train.check("QAT", missed)
        val.check("the VAL MAE of QAT", failed)
        val_mae = float(np.nanmean(np.abs(predicted - val_targets)))
        telemetry.mae("VAL", val_mae)
        seconds += result.seconds
        if result.epoch + 1 == training.epochs:
            telemetry.end()
        yield {
            "key": trial["key"], "settings": settings, "epoch": result.epoch + 1, "loss": result.loss,
            "val_mae": val_mae, "seconds": seconds, "checkpoint": result.checkpoint,
            "qat": qat.model_dump(mode="json"),
            "failed_clips": named_failures(train.clips, missed) | named_failures(val.clips, failed),
        }  # fmt: skip
