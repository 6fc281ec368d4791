"""Steps that train: FP32 with a VAL curve beside it, the FP32 control of QAT, and the QAT sweep."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qray.errors import QrayError
from qray.model.training import EpochResult
from qray.orchestrate.context import RunContext
from qray.orchestrate.steps import Step
from qray.orchestrate.sweep import Mailbox, best_trials, sweep
from qray.orchestrate.telemetry import free_actor_name
from qray.orchestrate.trial import SweepJob, qat_training, trial_name
from qray.orchestrate.work import TrainJob, evaluate_checkpoint, train

MAILBOX_TIMEOUT_S = 300.0
#: A sweep is silent until its last trial ends; each trial's stream has a time limit of its own.
SWEEP_SILENCE_S = 24 * 3600.0


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
        failed = run.name_failed("training", item["failed"])
        facts = {"files": [run.store.relative(path)], "losses": losses, "val_mae": curve.points}
        return facts | failed | _where(item)

    return Step("train", key, "train fp32", start, finish, on_item=on_item)


def _where(item: dict[str, Any]) -> dict[str, Any]:
    return {name: item[name] for name in ("device", "node", "host")}


class _ValidationCurve:
    """VAL MAE of each epoch's checkpoint, by a task of its own; an epoch is left out while another is evaluated."""

    def __init__(self, run: RunContext) -> None:
        self.run = run
        self.points: dict[int, float] = {}
        self._running: str | None = None

    def extend(self, item: EpochResult) -> None:
        run = self.run
        if self._running is not None and self._running not in run.runner.results:
            return
        self._running = f"validate-{item.epoch}"
        job = run.evaluate_job("train:fp32", run.study.clip.single_window())

        def start() -> Any:
            options = {"num_cpus": run.slots.slot_cpus, "name": f"validate:fp32:epoch-{item.epoch + 1}"}
            return evaluate_checkpoint.options(**options).remote(
                job, run.study.model, item.checkpoint, run.split("VAL")
            )

        def finish(value: dict[str, Any]) -> dict[str, Any]:
            run.name_failed("the validation curve", value["failed"])
            self.points[item.epoch] = value["val_mae"]
            run.runner.say(f"train fp32: VAL MAE {value['val_mae']:.3f} after epoch {item.epoch + 1}")
            return {}

        run.runner.add(Step(None, self._running, f"validate epoch {item.epoch + 1}", start, finish))


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
        failed = run.name_failed("training", item["failed"])
        epoch = run.best_trial(bits)["settings"]["epochs"] - 1
        return {"files": [run.store.relative(run.store.checkpoint_path(key, epoch))]} | failed | _where(item)

    return Step(
        "finetune", key, f"finetune fp32 as qat-w{bits}", start, finish, after=[run.plan.sweep], on_item=on_item
    )


class _Trials:
    """Empties the mailbox that trials post to, and writes each trial as a unit once it has ended."""

    def __init__(self, run: RunContext) -> None:
        self.run = run
        self.mailbox: Any = None
        self._asked: Any = None
        self.seen: dict[str, dict[str, Any]] = {}

    def save(self, item: dict[str, Any], reason: str | None) -> None:
        store = self.run.store
        record = {k: v for k, v in item.items() if k != "checkpoint"} | {"status": "ok", "reason": reason}
        path = store.checkpoint_path(item["key"], item["epoch"] - 1)
        store.put("trial", item["key"], record | {"files": [store.relative(path)]})

    def poll(self, wait_s: float = 0.0) -> None:
        """Take what has come; by default without waiting, since the loop that polls serves all other steps too."""
        if self.mailbox is None:
            return
        self._asked = self._asked or self.mailbox.take.remote()
        if not ray.wait([self._asked], timeout=wait_s)[0]:
            return
        items, self._asked = ray.get(self._asked), None
        for item in items:
            self.seen[item["key"]] = item
            self.run.name_failed("QAT", item["failed_clips"])
            self.run.store.save_checkpoint(item["key"], item["epoch"] - 1, item["checkpoint"])
            settings = item["settings"]
            self.run.runner.say(
                f"trial {trial_name(item)}: epoch {item['epoch']}/{settings['epochs']}, "
                f"loss {item['loss']:.4f}, VAL MAE {item['val_mae']:.3f}"
            )
            if item["epoch"] == settings["epochs"]:
                self.save(item, None)

    def end(self, failed: dict[str, str]) -> None:
        """Save what ASHA stopped early; name what failed."""
        # Twice: the first answer may have been asked for before the last trial posted.
        for _ in range(2):
            self.poll(MAILBOX_TIMEOUT_S)
        for key, item in self.seen.items():
            if self.run.store.get("trial", key) is None and key not in failed:
                self.save(item, f"stopped by ASHA after epoch {item['epoch']}")
        for key, reason in failed.items():
            self.run.runner.say(f"trial {key[:6]} failed: {reason}", "red")


def sweep_step(run: RunContext) -> Step:
    """QAT trials that are not finished yet; each is written as a unit as it ends."""
    study, plan, store, trials = run.study, run.plan, run.store, _Trials(run)
    settings = study.sweep
    if settings is None:
        raise QrayError(f"study {study.name} has no `sweep:` section, so there is nothing to sweep")
    concurrent = max(1, min(settings.max_concurrent, run.slots.holders - 1))
    if run.slots.gpus >= 1:
        concurrent = max(1, min(concurrent, int(run.slots.gpus)))

    def start() -> Any:
        left = [t for t in plan.trials if store.get("trial", t["key"]) is None]
        trials.mailbox = ray.remote(num_cpus=0)(Mailbox).options(name=free_actor_name("mailbox:qat")).remote()
        job = SweepJob(
            study.model, study.training, study.clip, settings, study.seed, run.slots.slot_cpus,
            run.slots.training_options(), concurrent, run.timeout_s, str(store.out / "sweep"),
            run.board,
        )  # fmt: skip
        run.runner.say(f"sweep: {len(left)} of {len(plan.trials)} QAT trials to run, {concurrent} at a time")
        if not left:
            return ray.put([])
        # Tune's storage is a folder of OUT, which the driver's node is sure to have.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        weights = run.checkpoint(plan.train)
        return sweep.options(name="sweep:qat", scheduling_strategy=here).remote(
            job, left, weights, run.split("TRAIN"), run.split("VAL"), trials.mailbox
        )

    def finish(errors: list[dict[str, Any]]) -> dict[str, Any]:
        failed = {error["key"]: error["error"] for error in errors}
        trials.end(failed)
        records = [store.get("trial", trial["key"]) for trial in plan.trials]
        best = best_trials([record for record in records if record is not None])
        missing = {v.weight_bits for v in study.variants if v.method in ("qat", "finetune")} - set(best)
        if missing:
            first = next(iter(failed.values()), "see sweep/ in the output folder")
            raise QrayError(f"no QAT trial of {sorted(missing)} bits finished: {first}")
        for bits, trial in sorted(best.items()):
            run.runner.say(f"sweep: best of {bits} bits is {trial['key'][:6]}, VAL MAE {trial['val_mae']:.3f}")
        return {"best": {str(bits): trial for bits, trial in best.items()}}

    return Step("sweep", plan.sweep, f"sweep {len(plan.trials)} QAT trials", start, finish, after=[plan.train],
                slots=concurrent, poll=trials.poll, silence_s=SWEEP_SILENCE_S)  # fmt: skip
