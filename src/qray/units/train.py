"""Training in FP32: the model, with a VAL curve beside it, and the control of QAT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qray.graph.unit import Resources, Task, Unit
from qray.measure.host import cpu_flags
from qray.model.epoch import EpochResult
from qray.study import Imported, Study, Training
from qray.units.clips import Job, SplitClips, named_failures
from qray.units.context import RunContext
from qray.units.evaluate import predict_split
from qray.units.trials import qat_training


def train_unit(study: Study, training: Training | None, digests: Mapping[str, str]) -> Unit:
    """The FP32 training, with its precision resolved, or without one the weights that were imported; digests: of the
    clips of each split."""
    model = study.model.identity() if isinstance(study.model, Imported) else study.model
    if training is None:
        return Unit("train", "fp32", AsImported(), {"model": model}, title="take the imported weights")
    depends = {
        "clips": digests["TRAIN"], "clip": study.clip.frames_read(), "model": model, "training": training,
        "seed": study.seed,
    }  # fmt: skip
    return Unit("train", "fp32", Train(training, digests["VAL"]), depends)


def finetune_unit(training: Training, bits: int, train: Unit, sweep: Unit) -> Unit:
    """The FP32 control of the best QAT trial of a width: same learning rate, epochs and batch-norm freeze."""
    depends = {"train": train, "sweep": sweep, "weight_bits": bits}
    return Unit("finetune", f"w{bits}", Finetune(training, bits, train, sweep), depends,
                title=f"finetune fp32 as qat-w{bits}")  # fmt: skip


class AsImported(Task):
    """The driver's own work."""

    resources = Resources(slots=0)

    def start(self, unit: Unit, run: RunContext) -> Any:
        return run.backend.done()

    def finish(self, unit: Unit, run: RunContext, value: None) -> dict[str, Any]:
        path = run.store.save_checkpoint(unit.key, 0, _imported(run.study) or b"")
        return {"files": [run.store.relative(path)], "val_mae": {}, "train_s": None}


def _imported(study: Study) -> bytes | None:
    """The weights that a study begins with, where they were imported."""
    if not isinstance(study.model, Imported):
        return None
    from qray.model.imported import imported_checkpoint

    return imported_checkpoint(study.model)


@dataclass
class Train(Task):
    """A checkpoint is written, and VAL evaluated beside it, after each epoch."""

    training: Training
    val: str
    version = 3
    resources = Resources(gpu=True)

    def start(self, unit: Unit, run: RunContext) -> Any:
        resume = run.store.latest_checkpoint(unit.key)
        if resume is not None:
            run.runner.say("training goes on from its last checkpoint")
        return run.backend.submit(unit, train, run.job, "fp32", self.training, run.split("TRAIN"),
                                  _imported(run.study), resume)  # fmt: skip

    def heard(self, unit: Unit, run: RunContext, item: Any) -> None:
        if not isinstance(item, EpochResult):
            return
        run.store.save_checkpoint(unit.key, item.epoch, item.checkpoint)
        rate, total = item.clips / max(item.seconds, 1e-6), self.training.epochs
        run.runner.say(f"train fp32: epoch {item.epoch + 1}/{total}, loss {item.loss:.4f}, {rate:.0f} clips/s")
        # An epoch is left out while another is evaluated.
        if not run.runner.busy("validate"):
            run.runner.add(self._validation(unit, item.epoch, item.checkpoint))

    def _validation(self, unit: Unit, epoch: int, checkpoint: bytes = b"") -> Unit:
        # Not a unit that it needs: training goes on.
        depends = {"train": unit.key, "val": self.val, "epoch": epoch}
        return Unit("validate", f"fp32 epoch {epoch + 1}", Validate(epoch, checkpoint), depends,
                    title=f"validate epoch {epoch + 1}")  # fmt: skip

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any]:
        path = run.store.checkpoint_path(unit.key, self.training.epochs - 1)
        failed = run.name_failed("training", value.pop("failed"))
        # Those included that were evaluated before a kill.
        found = {epoch: run.store.record(self._validation(unit, epoch)) for epoch in range(self.training.epochs)}
        curve = {epoch: record["val_mae"] for epoch, record in found.items() if record is not None}
        return {"files": [run.store.relative(path)], "val_mae": curve} | failed | value


@dataclass
class Validate(Task):
    """VAL MAE of the FP32 weights after an epoch, while training goes on."""

    epoch: int
    checkpoint: bytes

    def start(self, unit: Unit, run: RunContext) -> Any:
        return run.backend.submit(unit, validate, run.job, self.checkpoint, run.split("VAL"))

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any]:
        failed = run.name_failed("the validation curve", value.pop("failed"))
        run.runner.say(f"train fp32: VAL MAE {value['val_mae']:.3f} after epoch {self.epoch + 1}")
        return value | failed


@dataclass
class Finetune(Task):
    """Trains on from FP32 with the settings of the best trial."""

    training: Training
    bits: int
    train: Unit
    sweep: Unit
    resources = Resources(gpu=True)

    def start(self, unit: Unit, run: RunContext) -> Any:
        settings = run.best_trial(self.sweep, self.bits)["settings"]
        return run.backend.submit(
            unit, train, run.job, f"finetune-w{self.bits}", qat_training(self.training, settings), run.split("TRAIN"),
            run.checkpoint(self.train.key), None, settings["freeze_batch_norm_at"],
        )  # fmt: skip

    def heard(self, unit: Unit, run: RunContext, item: Any) -> None:
        if isinstance(item, EpochResult):
            run.store.save_checkpoint(unit.key, item.epoch, item.checkpoint)

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any]:
        failed = run.name_failed("training", value.pop("failed"))
        epoch = run.best_trial(self.sweep, self.bits)["settings"]["epochs"] - 1
        return {"files": [run.store.relative(run.store.checkpoint_path(unit.key, epoch))]} | failed | value


def train(
    job: Job, name: str, training: Training, train_clips: SplitClips, start: bytes | None, resume: bytes | None,
    freeze_batch_norm_at: float = 1.0,
) -> Iterator[Any]:  # fmt: skip
    """Train in FP32 from scratch, or (with `start`) the control that goes on from a checkpoint as QAT does.

    Yields an EpochResult after each epoch. The last item is {"failed": {clip: reason}, "device", "losses" (of these
    epochs), "train_s" (seconds of all epochs)}."""
    import torch

    from qray.model.training import FitSettings, fit, freeze_batch_norm, load_checkpoint, resolve_precision
    from qray.units.work import (
        loss_scale,
        model_from_state,
        new_model,
        training_device,
        training_stream,
        training_threads,
    )

    study, device = job.study, training_device()
    torch.set_num_threads(training_threads())
    torch.manual_seed(study.seed)
    target = train_clips.clips["target"]
    if isinstance(study.model, Imported) or start:
        assert start is not None
        model = model_from_state(study.model, start)
    else:
        model = new_model(study.model, target, study.seed)
    model.channels_last().train()
    plan, batches, failed, telemetry = training_stream(job, name, train_clips, training, resume, training.epochs)
    settings = FitSettings(
        training, plan.steps_per_epoch(len(target)), loss_scale(model, study.model, target), study.seed,
        resolve_precision(training, device, bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})), device,
    )  # fmt: skip

    def freeze(epoch: int) -> None:
        if epoch >= freeze_batch_norm_at * training.epochs:
            freeze_batch_norm(model)

    train_s = float(load_checkpoint(resume)["seconds"]) if resume else 0.0
    losses = []
    for result in fit(model, batches, settings, resume, on_epoch_start=freeze, on_step=telemetry.step):
        train_s = result.seconds_so_far
        losses.append(result.loss)
        train_clips.check("training", failed)
        yield result
    telemetry.end()
    missed = named_failures(train_clips.clips, failed)
    yield {"failed": missed, "device": device, "losses": losses, "train_s": train_s}


def validate(job: Job, checkpoint: bytes, val: SplitClips) -> dict[str, Any]:
    """{"val_mae"} of FP32 weights, and "failed": reasons by clip."""
    import numpy as np
    import torch

    from qray.graph.telemetry import Telemetry
    from qray.units.work import model_from_state

    torch.set_num_threads(1)
    network = model_from_state(job.study.model, checkpoint).channels_last()
    plan = job.eval_plan(job.study.clip.single_window())

    def predict(clips: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(clips)).numpy()

    telemetry = Telemetry("validate", "fp32", job.board, len(val.clips))
    _, failed, mae = predict_split(predict, val, plan, "validate fp32", "the validation curve", telemetry.clips)
    telemetry.mae("VAL", mae)
    telemetry.end()
    return {"val_mae": mae, "failed": failed}
