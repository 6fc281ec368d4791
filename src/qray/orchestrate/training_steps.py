"""Steps that train in FP32: the model, with a VAL curve beside it, and the control of QAT."""

from __future__ import annotations

from typing import Any

from qray.data.manifest import digest_of
from qray.model.epoch import EpochResult
from qray.orchestrate.context import RunContext
from qray.orchestrate.steps import Step
from qray.orchestrate.store import unit_key
from qray.orchestrate.tasks import TrainJob, train, validate
from qray.orchestrate.trials import qat_training


def train_step(run: RunContext) -> Step:
    """FP32 training: a checkpoint is written, and VAL evaluated beside it, after each epoch."""
    study, key = run.study, run.plan.train
    total = study.training.epochs
    job = TrainJob(
        "fp32", study.model, run.plan.training, study.clip, study.seed, run.slots.slot_cpus, run.timeout_s,
        run.board,
    )  # fmt: skip
    curve = _ValidationCurve(run)
    losses: list[float] = []

    def start() -> Any:
        resume = run.store.latest_checkpoint(key)
        if resume is not None:
            run.runner.say("training goes on from its last checkpoint")
        options = run.slots.training_options() | {"name": "train:fp32"}
        return train.options(**options).remote(job, run.split("TRAIN"), None, resume)

    def on_item(item: Any) -> None:
        if not isinstance(item, EpochResult):
            return
        losses.append(item.loss)
        run.store.save_checkpoint(key, item.epoch, item.checkpoint)
        rate = item.clips / max(item.seconds, 1e-6)
        run.runner.say(f"train fp32: epoch {item.epoch + 1}/{total}, loss {item.loss:.4f}, {rate:.0f} clips/s")
        curve.extend(item)

    def finish(item: dict[str, Any]) -> dict[str, Any]:
        path = run.store.checkpoint_path(key, total - 1)
        failed = run.name_failed("training", item.pop("failed"))
        facts = {"files": [run.store.relative(path)], "losses": losses, "val_mae": curve.points()}
        return facts | failed | item

    return Step("train", key, "train fp32", start, finish, on_item=on_item)


class _ValidationCurve:
    """VAL MAE of each epoch's checkpoint, by a task of its own; an epoch is left out while another is evaluated."""

    def __init__(self, run: RunContext) -> None:
        self.run = run
        self._running: str | None = None

    def points(self) -> dict[int, float]:
        """VAL MAE by epoch, those included that were evaluated before a kill."""
        epochs = range(self.run.study.training.epochs)
        found = {epoch: self.run.store.get("validate", self._key(epoch)) for epoch in epochs}
        return {epoch: record["val_mae"] for epoch, record in found.items() if record is not None}

    def _key(self, epoch: int) -> str:
        plan = self.run.plan
        return unit_key("validate", train=plan.train, val=digest_of(plan.manifest.split("VAL")), epoch=epoch)

    def extend(self, item: EpochResult) -> None:
        run = self.run
        if self._running is not None and self._running not in run.runner.results:
            return
        self._running = self._key(item.epoch)
        job = run.evaluate_job("train:fp32", run.study.clip.single_window())

        def start() -> Any:
            options = {"num_cpus": run.slots.slot_cpus, "name": f"validate:fp32:epoch-{item.epoch + 1}"}
            return validate.options(**options).remote(job, run.study.model, item.checkpoint, run.split("VAL"))

        def finish(value: dict[str, Any]) -> dict[str, Any]:
            failed = run.name_failed("the validation curve", value.pop("failed"))
            run.runner.say(f"train fp32: VAL MAE {value['val_mae']:.3f} after epoch {item.epoch + 1}")
            return value | failed

        run.runner.add(Step("validate", self._running, f"validate epoch {item.epoch + 1}", start, finish))


def finetune_step(run: RunContext, bits: int) -> Step:
    """The FP32 control of the best QAT trial of a width: same learning rate, epochs and batch-norm freeze."""
    key, study = run.plan.finetune[bits], run.study

    def start() -> Any:
        settings = run.best_trial(bits)["settings"]
        job = TrainJob(
            f"finetune-w{bits}", study.model, qat_training(study.training, settings), study.clip, study.seed,
            run.slots.slot_cpus, run.timeout_s, run.board, settings["freeze_batch_norm_at"],
        )  # fmt: skip
        options = run.slots.training_options() | {"name": f"train:finetune-w{bits}"}
        return train.options(**options).remote(job, run.split("TRAIN"), run.checkpoint(run.plan.train), None)

    def on_item(item: Any) -> None:
        if isinstance(item, EpochResult):
            run.store.save_checkpoint(key, item.epoch, item.checkpoint)

    def finish(item: dict[str, Any]) -> dict[str, Any]:
        failed = run.name_failed("training", item.pop("failed"))
        epoch = run.best_trial(bits)["settings"]["epochs"] - 1
        return {"files": [run.store.relative(run.store.checkpoint_path(key, epoch))]} | failed | item

    return Step(
        "finetune", key, f"finetune fp32 as qat-w{bits}", start, finish, after=[run.plan.sweep], on_item=on_item
    )
