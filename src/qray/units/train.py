"""Training in FP32: the model, with a VAL curve beside it, and the control of QAT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qray.errors import QrayError
from qray.graph.runner import RESTARTS
from qray.graph.unit import Resources, Task, Unit
from qray.measure.host import cpu_flags
from qray.model.epoch import Checkpoint, EpochResult
from qray.study import Imported, Study, Training
from qray.units.clips import Job, SplitClips, named_failures
from qray.units.context import RunContext
from qray.units.evaluate import predict_split
from qray.units.mailbox import Letters
from qray.units.trials import qat_training

if TYPE_CHECKING:
    from qray.units.work import Worker


def train_unit(study: Study, training: Training | None, digests: Mapping[str, str]) -> Unit:
    """The FP32 training, with its precision resolved, or without one the weights that were imported; digests: of the
    clips of each split."""
    model = study.model.identity() if isinstance(study.model, Imported) else study.model
    if training is None:
        return Unit("train", "fp32", AsImported(), {"model": model}, title="take the imported weights")
    depends = {
        "clips": digests["TRAIN"], "clip": study.clip.frames_read(), "model": model,
        "training": training.identity(), "seed": study.seed,
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
        weights = _imported(run.study)
        assert weights is not None
        path = run.store.save_checkpoint(unit.key, 0, weights)
        return {"files": [run.store.relative(path)], "val_mae": {}, "train_s": None}


def _imported(study: Study) -> Checkpoint | None:
    """The weights that a study begins with, where they were imported."""
    if not isinstance(study.model, Imported):
        return None
    from qray.model.imported import imported_checkpoint

    return imported_checkpoint(study.model)


@dataclass
class Fit(Task):
    """A training: by one task, which yields what each epoch left, or by `training.workers`, who leave it in a mailbox.

    After each epoch a checkpoint is written. A training by several that lost a worker is started again from the last.
    """

    training: Training
    _letters: Letters | None = field(default=None, init=False)
    _last: Any = field(default=None, init=False)
    _lost: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        workers = self.training.workers
        together = Resources(slots=workers, whole=True, gpu=True, here=True)
        self.resources = together if workers > 1 else Resources(gpu=True)

    def begin(
        self, unit: Unit, run: RunContext, name: str, training: Training, start: Checkpoint | None,
        freeze_batch_norm_at: float = 1.0,
    ) -> Any:  # fmt: skip
        """Start it from its last checkpoint, if it has one; `name` is what the dashboard calls it, and `start` the
        weights with which it begins."""
        if self._letters is not None:
            # Who started the workers is gone.
            self._read(unit, run, self._letters.take_all())
        resume = run.store.latest_checkpoint(unit.key)
        if resume is not None:
            run.runner.say(f"{unit.label} goes on from its last checkpoint")
        arguments = (run.job, name, training, run.split("TRAIN"), start, resume, freeze_batch_norm_at)
        if training.workers == 1:
            return run.backend.submit(unit, train, *arguments)
        self._letters, self._last = Letters(f"mailbox:{name}"), None
        options = run.backend.slots.options(gpu=True)
        return run.backend.submit(unit, train_together, *arguments, self._letters.mailbox, options)

    def heard(self, unit: Unit, run: RunContext, item: Any) -> None:
        if isinstance(item, EpochResult):
            run.store.save_checkpoint(unit.key, item.epoch, item.checkpoint)
            self.after_epoch(unit, run, item)

    def after_epoch(self, unit: Unit, run: RunContext, result: EpochResult) -> None:
        """What else an epoch gives occasion to."""

    def poll(self, unit: Unit, run: RunContext) -> bool:
        return self._read(unit, run, self._letters.take() if self._letters else [])

    def _read(self, unit: Unit, run: RunContext, items: list[Any]) -> bool:
        for item in items:
            self._last = item
            if isinstance(item, EpochResult):
                self._lost = 0
                self.heard(unit, run, item)
        return bool(items)

    def outcome(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any] | None:
        """What the last item of `train` says, given what the work ended with; None where it is to be started again.

        Raises:
            QrayError: it failed, or lost workers time and again.
        """
        if self._letters is None:
            return value
        self._read(unit, run, self._letters.take_all())
        self._letters = None
        if isinstance(self._last, QrayError):
            raise self._last
        if "lost" not in value:
            return value | self._last
        self._lost += 1
        if self._lost > RESTARTS:
            raise QrayError(f"its workers ended {self._lost} times without an epoch between: {value['lost']}")
        run.runner.say(f"{unit.label} is started again, since it lost workers: {value['lost']}", "yellow")
        return None


@dataclass
class Train(Fit):
    """VAL is evaluated beside it, after each epoch."""

    val: str
    version = 3

    def start(self, unit: Unit, run: RunContext) -> Any:
        return self.begin(unit, run, "fp32", self.training, _imported(run.study))

    def after_epoch(self, unit: Unit, run: RunContext, result: EpochResult) -> None:
        rate, total = result.clips / max(result.seconds, 1e-6), self.training.epochs
        run.runner.say(f"train fp32: epoch {result.epoch + 1}/{total}, loss {result.loss:.4f}, {rate:.0f} clips/s")
        # An epoch is left out while another is evaluated.
        if not run.runner.busy("validate"):
            run.runner.add(self._validation(unit, result.epoch, result.checkpoint))

    def _validation(self, unit: Unit, epoch: int, checkpoint: Checkpoint | None = None) -> Unit:
        # Not a unit that it needs: training goes on.
        depends = {"train": unit.key, "val": self.val, "epoch": epoch}
        return Unit("validate", f"fp32 epoch {epoch + 1}", Validate(epoch, checkpoint), depends,
                    title=f"validate epoch {epoch + 1}")  # fmt: skip

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any] | None:
        done = self.outcome(unit, run, value)
        if done is None:
            return None
        path = run.store.checkpoint_path(unit.key, self.training.epochs - 1)
        failed = run.name_failed("training", done.pop("failed"))
        # Those included that were evaluated before a kill.
        found = {epoch: run.store.record(self._validation(unit, epoch)) for epoch in range(self.training.epochs)}
        curve = {epoch: record["val_mae"] for epoch, record in found.items() if record is not None}
        return {"files": [run.store.relative(path)], "val_mae": curve} | failed | done


@dataclass
class Validate(Task):
    """VAL MAE of the FP32 weights after an epoch, while training goes on."""

    epoch: int
    #: None of one that is only looked up.
    checkpoint: Checkpoint | None

    def start(self, unit: Unit, run: RunContext) -> Any:
        return run.backend.submit(unit, validate, run.job, self.checkpoint, run.split("VAL"))

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any]:
        failed = run.name_failed("the validation curve", value.pop("failed"))
        run.runner.say(f"train fp32: VAL MAE {value['val_mae']:.3f} after epoch {self.epoch + 1}")
        return value | failed


@dataclass
class Finetune(Fit):
    """Trains on from FP32 with the settings of the best trial."""

    bits: int
    train: Unit
    sweep: Unit

    def start(self, unit: Unit, run: RunContext) -> Any:
        settings = run.best_trial(self.sweep, self.bits)["settings"]
        training, weights = qat_training(self.training, settings), run.checkpoint(self.train.key)
        name = f"finetune-w{self.bits}"
        return self.begin(unit, run, name, training, weights, settings["freeze_batch_norm_at"])

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any] | None:
        done = self.outcome(unit, run, value)
        if done is None:
            return None
        failed = run.name_failed("training", done.pop("failed"))
        epoch = run.best_trial(self.sweep, self.bits)["settings"]["epochs"] - 1
        return {"files": [run.store.relative(run.store.checkpoint_path(unit.key, epoch))]} | failed | done


def train_together(*arguments: Any) -> dict[str, Any]:
    """`together.run_workers`, with Ray Train imported where it runs."""
    from qray.units.together import run_workers

    return run_workers(*arguments)


def train(
    job: Job, name: str, training: Training, train_clips: SplitClips, start: Checkpoint | None,
    resume: Checkpoint | None, freeze_batch_norm_at: float = 1.0, worker: Worker | None = None,
) -> Iterator[Any]:  # fmt: skip
    """Train in FP32 from scratch, or (with `start`) the control that goes on from a checkpoint as QAT does; as one of
    several workers, or alone.

    Yields an EpochResult after each epoch. The last item is {"failed": {clip: reason}, "device", "losses" (of these
    epochs), "train_s" (seconds of all epochs)}."""
    import torch

    from qray.model.training import FitSettings, fit, freeze_batch_norm, load_checkpoint, resolve_precision
    from qray.units.work import (
        loss_scale,
        model_from_state,
        new_model,
        only_worker,
        training_stream,
    )

    study, worker = job.study, worker or only_worker()
    device, share = torch.device(worker.device).type, worker.share
    torch.set_num_threads(worker.threads)
    # What dropout leaves out is drawn by each worker for its own clips.
    torch.manual_seed(study.seed + share.rank)
    target = train_clips.clips["target"]
    if isinstance(study.model, Imported) or start is not None:
        assert start is not None
        model = model_from_state(study.model, start)
    else:
        model = new_model(study.model, target, study.seed)
    model.channels_last().train()
    plan, batches, failed, telemetry = training_stream(
        job, name, train_clips, training, resume, training.epochs, worker
    )
    settings = FitSettings(
        training, plan.steps_per_epoch(len(target)), loss_scale(model, study.model, target), study.seed,
        resolve_precision(training, device, bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})),
        worker.device,
    )  # fmt: skip

    def freeze(epoch: int) -> None:
        if epoch >= freeze_batch_norm_at * training.epochs:
            freeze_batch_norm(model)

    train_s = float(load_checkpoint(resume)["seconds"]) if resume is not None else 0.0
    losses = []
    on_step = telemetry.step if share.rank == 0 else None
    for result in fit(model, batches, settings, resume, freeze, on_step, share):
        train_s = result.seconds_so_far
        losses.append(result.loss)
        train_clips.check("training", share.merged(failed))
        yield result
    telemetry.end()
    missed = named_failures(train_clips.clips, share.merged(failed))
    yield {"failed": missed, "device": device, "losses": losses, "train_s": train_s}


def validate(job: Job, checkpoint: Checkpoint, val: SplitClips) -> dict[str, Any]:
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
