"""One QAT trial: from the FP32 checkpoint, on the training stream, VAL after each epoch. Knows nothing of Tune."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import numpy as np
import torch

from qray.errors import Diverged
from qray.graph.placement import whereabouts
from qray.model.epoch import Checkpoint
from qray.model.training import FitSettings, fit
from qray.units.clips import SplitClips, named_failures
from qray.units.evaluate import predict_split
from qray.units.sweep import SweepJob
from qray.units.trials import qat_training
from qray.units.work import loss_scale, model_from_state, training_device, training_stream, training_threads


def train_qat(
    name: str, trial: dict[str, Any], job: SweepJob, weights: Checkpoint, train: SplitClips, val: SplitClips,
    resume: Checkpoint | None = None,
) -> Generator[dict[str, Any], None, None]:  # fmt: skip
    """Train with fake-quantization up to epoch `trial["until"]`; yield a record after each epoch.

    `weights` is the FP32 checkpoint, `resume` one of this trial's own to go on from. A record holds key (the trial's
    after this epoch), trial (its key when it is whole), settings, epoch (from 1), status and reason, loss, val_mae,
    when the epoch started and how many seconds it took, train_s (seconds of training, so far), checkpoint, qat
    (the `QatSettings` that its state_dict fits), failed_clips, and the whereabouts. A trial that diverges ends with a
    record of status "failed", without a checkpoint.
    """
    from qray.engines import pt2e

    started, settings = time.time(), trial["settings"]
    torch.set_num_threads(training_threads(job.concurrent))
    study, device = job.study, training_device()
    torch.manual_seed(study.seed)
    model = model_from_state(study.model, weights).channels_last()
    size = study.clip.image_size
    example = torch.zeros((2, study.clip.frames, size, size, 3), dtype=torch.uint8)
    qat = pt2e.QatSettings(
        weight_bits=settings["weight_bits"],
        observer=settings["observer"],
        keep_fp32=tuple(settings["keep_fp32"]),
        reduce_range=settings["reduce_range"],
    )
    module = pt2e.prepare_qat(model, example, qat)
    training = qat_training(study.fit, settings)
    plan, batches, missed, telemetry = training_stream(job, name, train, training, resume, trial["until"])
    val_plan = job.eval_plan(study.clip.single_window(), training.batch_size)
    steps = plan.steps_per_epoch(len(train.clips))
    scale = loss_scale(model, study.model, train.clips["target"])
    fit_settings = FitSettings(training, steps, scale, study.seed, "fp32", device)

    def on_epoch(epoch: int) -> None:
        pt2e.set_training(module, True)
        if epoch >= settings["freeze_batch_norm_at"] * training.epochs:
            pt2e.freeze_batch_norm(module)
        if epoch >= settings["freeze_observers_at"] * training.epochs:
            pt2e.freeze_observers(module)

    def predict(clips: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(clips).to(device)).float().cpu().numpy()

    epochs = fit(module, batches, fit_settings, resume, on_epoch, telemetry.step)
    for epoch in range(plan.first_epoch, plan.epochs):
        shared = {"key": trial["keys"][epoch], "trial": trial["key"], "settings": settings, "epoch": epoch + 1}
        try:
            result = next(epochs)
            train.check("QAT", missed)
            pt2e.set_training(module, False)
            _, failed, val_mae = predict_split(predict, val, val_plan, f"validate {name}", "the VAL MAE of QAT")
        except Diverged as error:
            telemetry.end()
            yield (
                shared
                | _ended(started)
                | {"status": "failed", "reason": f"epoch {epoch + 1}: {error}", "val_mae": None}
            )
            return
        telemetry.mae("VAL", val_mae)
        if epoch + 1 == plan.epochs:
            telemetry.end()
        yield shared | _ended(started) | {
            "status": "ok", "reason": None, "loss": result.loss, "val_mae": val_mae, "train_s": result.seconds_so_far,
            "checkpoint": result.checkpoint, "qat": qat.model_dump(mode="json"),
            "failed_clips": named_failures(train.clips, missed) | failed,
        }  # fmt: skip
        started = time.time()


def _ended(started: float) -> dict[str, Any]:
    return {"started": started, "seconds": time.time() - started, **whereabouts()}
