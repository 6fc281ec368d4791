"""Plan, train and evaluate, measure, table: the main job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from rich.console import Console

from qray.data.stream import StreamPlan, cached, clip_dataset, put_clips
from qray.errors import QrayError
from qray.model.training import EpochResult
from qray.orchestrate import measuring
from qray.orchestrate.collect import write_table
from qray.orchestrate.data_set import ensure_data, load_manifest
from qray.orchestrate.plan import Plan, make_plan
from qray.orchestrate.session import Slots, cluster_slots, ray_session
from qray.orchestrate.steps import Result, Runner, Skipped, Step
from qray.orchestrate.store import Store, pack_folder
from qray.orchestrate.sweep import Mailbox, SweepJob, best_trials, qat_training, sweep
from qray.orchestrate.work import (
    BuildJob,
    EvaluateJob,
    Evaluator,
    SplitClips,
    TrainJob,
    build,
    evaluate_checkpoint,
    replace_windows,
    train,
)
from qray.study import Study, Variant
from qray.study_files import dump_study

STAGES = ("train", "build", "sweep", "evaluate", "measure", "table", "all")
#: Longest silence of a step that streams clips of its own (its stream has a shorter limit), and of a compilation.
SILENCE_S = 3600.0
#: A control trains as long as the QAT it is the control of, and stops its batch-norm at the same epoch.
MAILBOX_TIMEOUT_S = 60.0


@dataclass
class RunResult:
    """What a run left: the table, how each unit ended, and the seconds of its phases."""

    table: pa.Table
    results: dict[str, Result]
    phases: dict[str, float]


class Run:
    """One study on one data set into one OUT folder, inside a Ray session."""

    def __init__(self, study: Study, store: Store, plan: Plan, console: Console) -> None:
        self.study, self.store, self.plan = study, store, plan
        self.runner = Runner(store, console)
        self.slots: Slots = cluster_slots()
        self._splits: dict[str, SplitClips] = {}
        self._mailbox: Any = None
        self._validating: str | None = None
        self._curve: dict[int, float] = {}

    # -- clips ---------------------------------------------------------------------------------------------------------

    def split(self, name: str, windows: int | None = None) -> SplitClips:
        """A split's clips; VAL and TEST decoded once and kept in the object store where they fit."""
        if name not in self._splits:
            clips = self.plan.manifest.split(name)
            ref = put_clips(clips)
            decoded = None
            if name != "TRAIN":
                spec = self.study.clip if windows is None else replace_windows(self.study.clip)
                stream = self._stream(spec)
                kept = cached(clip_dataset(ref, len(clips), stream), len(clips), stream)
                decoded = kept if isinstance(kept, ray.data.MaterializedDataset) else None
            self._splits[name] = SplitClips(clips, ref, decoded)
        return self._splits[name]

    def _stream(self, spec: Any) -> StreamPlan:
        evaluation = self.study.evaluation
        return StreamPlan(
            spec, "eval", evaluation.batch_size, cpus_per_task=self.slots.slot_cpus,
            timeout_s=evaluation.batch_timeout_s,
        )  # fmt: skip

    def _check_failed(self, split: str, failed: dict[int, str]) -> None:
        clips, limit = self.plan.manifest.split(split), self.study.data.max_rejected
        for index, reason in list(failed.items())[:5]:
            self.runner.say(f"clip {clips['clip'].iloc[index]} left out: {reason}", "yellow")
        if len(failed) > limit * len(clips):
            first = next(iter(failed.values()))
            raise QrayError(
                f"{len(failed)} of {len(clips)} {split} clips could not be decoded, more than data.max_rejected = "
                f"{limit:g} allows; the first: {first}"
            )

    # -- training ------------------------------------------------------------------------------------------------------

    def train_step(self) -> Step:
        """FP32 training: a checkpoint is written, and VAL evaluated beside it, after each epoch."""
        study, key = self.study, self.plan.train
        total = study.training.epochs
        job = TrainJob(
            "fp32", study.model, study.training, study.clip, study.seed, self.slots.slot_cpus,
            study.evaluation.batch_timeout_s,
        )  # fmt: skip
        losses: list[float] = []

        def start() -> Any:
            resume = self.store.latest_checkpoint(key)
            if resume is not None:
                self.runner.say("training goes on from its last checkpoint")
            options = self.slots.training_options() | {"name": "train:fp32"}
            return train.options(**options).remote(job, self.split("TRAIN"), None, resume)

        def on_item(item: Any) -> None:
            if not isinstance(item, EpochResult):
                return
            losses.append(item.loss)
            self.store.save_checkpoint(key, item.epoch, item.checkpoint)
            rate = item.clips / max(item.seconds, 1e-6)
            self.runner.say(f"train fp32: epoch {item.epoch + 1}/{total}, loss {item.loss:.4f}, {rate:.0f} clips/s")
            self._validate(item)

        def finish(item: dict[str, Any]) -> dict[str, Any]:
            self._check_failed("TRAIN", item["failed"])
            path = self.store.checkpoint_path(key, total - 1)
            return {"files": [self.store.relative(path)], "losses": losses, "val_mae": self._curve}

        return Step("train", key, "train fp32", start, finish, on_item=on_item, silence_s=SILENCE_S)

    def _validate(self, item: EpochResult) -> None:
        """VAL MAE of a checkpoint in a task of its own; skipped while the last one is still running."""
        if self._validating is not None and self._validating not in self.runner.results:
            return
        self._validating = f"val-{item.epoch}"
        job = self._evaluate_job("train:fp32", replace_windows(self.study.clip))

        def start() -> Any:
            options = {"num_cpus": self.slots.slot_cpus, "name": f"val:fp32:epoch-{item.epoch + 1}"}
            val = self.split("VAL", windows=1)
            return evaluate_checkpoint.options(**options).remote(
                job, self.study.model, item.checkpoint, val, item.epoch
            )

        def finish(value: dict[str, float]) -> dict[str, Any]:
            self._curve[item.epoch] = value["val_mae"]
            self.runner.say(f"train fp32: VAL MAE {value['val_mae']:.3f} after epoch {item.epoch + 1}")
            return {}

        self.runner.add(Step(None, self._validating, f"validate epoch {item.epoch + 1}", start, finish))

    def finetune_step(self, bits: int) -> Step:
        """The FP32 control of the best QAT trial of a width: same learning rate, epochs and batch-norm freeze."""
        key, study = self.plan.finetune[bits], self.study

        def start() -> Any:
            settings = self._best(bits)["settings"]
            job = TrainJob(
                f"finetune-w{bits}", study.model, qat_training(study.training, settings), study.clip, study.seed,
                self.slots.slot_cpus, study.evaluation.batch_timeout_s, settings["freeze_batch_norm_at"],
            )  # fmt: skip
            options = self.slots.training_options() | {"name": f"train:finetune-w{bits}"}
            return train.options(**options).remote(job, self.split("TRAIN"), self._checkpoint(self.plan.train), None)

        def on_item(item: Any) -> None:
            if isinstance(item, EpochResult):
                self.store.save_checkpoint(key, item.epoch, item.checkpoint)

        def finish(_item: Any) -> dict[str, Any]:
            epoch = self._best(bits)["settings"]["epochs"] - 1
            return {"files": [self.store.relative(self.store.checkpoint_path(key, epoch))]}

        return Step("finetune", key, f"finetune fp32 as qat-w{bits}", start, finish, after=[self.plan.sweep],
                    on_item=on_item, silence_s=SILENCE_S)  # fmt: skip

    def _checkpoint(self, key: str) -> bytes:
        data = self.store.latest_checkpoint(key)
        if data is None:
            raise QrayError(f"{self.store.out / 'checkpoints' / key}: no checkpoint; run again with --fresh")
        return data

    # -- sweep ---------------------------------------------------------------------------------------------------------

    def sweep_step(self) -> Step:
        """QAT trials that are not finished yet; each is written as a unit as it ends."""
        study, plan, store = self.study, self.plan, self.store
        assert study.sweep is not None
        concurrent = max(1, min(study.sweep.max_concurrent, self.slots.holders - 1))
        if self.slots.gpus >= 1:
            concurrent = max(1, min(concurrent, int(self.slots.gpus)))
        seen: dict[str, dict[str, Any]] = {}

        def put(item: dict[str, Any], reason: str | None) -> None:
            record = {k: v for k, v in item.items() if k != "checkpoint"} | {"status": "ok", "reason": reason}
            path = store.checkpoint_path(item["key"], item["epoch"] - 1)
            store.put("trial", item["key"], record | {"files": [store.relative(path)]})

        def poll() -> None:
            if self._mailbox is None:
                return
            for item in ray.get(self._mailbox.take.remote(), timeout=MAILBOX_TIMEOUT_S):
                seen[item["key"]] = item
                store.save_checkpoint(item["key"], item["epoch"] - 1, item["checkpoint"])
                settings = item["settings"]
                self.runner.say(
                    f"trial qat-w{settings['weight_bits']}-{item['key'][:6]}: epoch {item['epoch']}/{settings['epochs']}, "
                    f"loss {item['loss']:.4f}, VAL MAE {item['val_mae']:.3f}"
                )
                if item["epoch"] == settings["epochs"]:
                    put(item, None)

        def start() -> Any:
            left = [t for t in plan.trials if store.get("trial", t["key"]) is None]
            self._mailbox = Mailbox.options(name=f"mailbox-{plan.sweep}-{time.time_ns()}").remote()
            job = SweepJob(
                study.model, study.training, study.clip, study.sweep, study.seed, self.slots.slot_cpus,
                self.slots.training_options(), concurrent, study.evaluation.batch_timeout_s,
                str(store.out / "sweep"),
            )  # fmt: skip
            self.runner.say(f"sweep: {len(left)} of {len(plan.trials)} QAT trials to run, {concurrent} at a time")
            if not left:
                return ray.put([])
            node = ray.get_runtime_context().get_node_id()
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
            weights = self._checkpoint(plan.train)
            return sweep.options(name="sweep:qat", scheduling_strategy=here).remote(
                job, left, weights, self.split("TRAIN"), self.split("VAL", windows=1), self._mailbox
            )

        def finish(errors: list[dict[str, Any]]) -> dict[str, Any]:
            poll()
            failed = {error["key"]: error["error"] for error in errors}
            for key, item in seen.items():
                if store.get("trial", key) is None and key not in failed:
                    put(item, f"stopped by ASHA after epoch {item['epoch']}")
            for key, reason in failed.items():
                self.runner.say(f"trial {key[:6]} failed: {reason}", "red")
            records = [store.get("trial", trial["key"]) for trial in plan.trials]
            best = best_trials([record for record in records if record is not None])
            missing = {v.weight_bits for v in study.variants if v.method == "qat"} - set(best)
            if missing:
                first = next(iter(failed.values()), "see sweep/ in the output folder")
                raise QrayError(f"no QAT trial of {sorted(missing)} bits finished: {first}")
            for bits, trial in sorted(best.items()):
                self.runner.say(f"sweep: best of {bits} bits is {trial['key'][:6]}, VAL MAE {trial['val_mae']:.3f}")
            return {"best": {str(bits): trial for bits, trial in best.items()}}

        return Step("sweep", plan.sweep, f"sweep {len(plan.trials)} QAT trials", start, finish, after=[plan.train],
                    slots=concurrent, poll=poll, silence_s=4 * SILENCE_S)  # fmt: skip

    def _best(self, bits: int) -> dict[str, Any]:
        return self.runner.record(self.plan.sweep)["best"][str(bits)]

    # -- build and evaluate --------------------------------------------------------------------------------------------

    def build_step(self, variant: Variant) -> Step:
        """Build one artifact from the weights its method needs."""
        plan, study, key = self.plan, self.study, self.plan.build[variant.name]
        source = {"qat": plan.sweep, "finetune": plan.finetune.get(variant.weight_bits, "")}.get(
            variant.method, plan.train
        )

        def start() -> Any:
            weights = self._checkpoint(source if variant.method == "finetune" else plan.train)
            calibration, qat_weights, qat_settings = None, None, None
            if variant.method == "ptq":
                clips = plan.calibration_clips()
                calibration = SplitClips(clips, put_clips(clips))
            elif variant.method == "qat":
                best = self._best(variant.weight_bits)
                qat_weights, qat_settings = self._checkpoint(best["key"]), best["qat"]
            job = BuildJob(
                variant, key, study.model, study.clip, study.calibration.batch_size, self.slots.slot_cpus,
                study.evaluation.batch_timeout_s, qat_settings,
            )  # fmt: skip
            options = {"num_cpus": self.slots.slot_cpus, "name": f"build:{variant.name}"}
            return build.options(**options).remote(job, weights, calibration, qat_weights)

        def finish(value: dict[str, Any]) -> dict[str, Any]:
            if "skipped" in value:
                raise Skipped(value["skipped"])
            folder = self.store.save_artifact(key, value["files"])
            return {"files": [self.store.relative(folder / "artifact.json")], "build_s": value["build_s"]}

        return Step("build", key, f"build {variant.name}", start, finish, after=[source], silence_s=SILENCE_S)

    def _evaluate_job(self, name: str, spec: Any) -> EvaluateJob:
        evaluation = self.study.evaluation
        return EvaluateJob(name, spec, evaluation.batch_size, self.slots.slot_cpus, evaluation.batch_timeout_s)

    def evaluate_step(self, variant: Variant) -> Step:
        """Predict TEST with one finished artifact, in an actor that loads it from its files."""
        plan, key, build_key = self.plan, self.plan.evaluate[variant.name], self.plan.build[variant.name]
        actors: list[Any] = []

        def start() -> Any:
            files = pack_folder(self.store.artifact_folder(build_key))
            name = f"evaluate:{variant.name}"
            options = {"num_cpus": self.slots.slot_cpus, "name": f"{name}:{time.time_ns()}"}
            actor = Evaluator.options(**options).remote(self._evaluate_job(variant.name, self.study.clip), files)
            actors.append(actor)
            return actor.evaluate.options(name=name).remote({"TEST": self.split("TEST")})

        def finish(value: dict[str, Any]) -> dict[str, Any]:
            actors.clear()
            predicted, failed = value["TEST"]
            self._check_failed("TEST", failed)
            clips = plan.manifest.split("TEST")
            path = self.store.save_predictions(key, "TEST", clips, predicted, self.study.seed)
            return {"files": [self.store.relative(path)], "failed_clips": len(failed)}

        return Step("evaluate", key, f"evaluate {variant.name}", start, finish, after=[build_key])

    def save_baseline(self) -> None:
        """The mean predictor's predictions: the mean TRAIN target for every TEST clip."""
        key, clips = self.plan.baseline_key(), self.plan.manifest.split("TEST")
        if not self.store.predictions_path(key, "TEST").is_file():
            mean = float(self.plan.manifest.split("TRAIN")["target"].mean())
            self.store.save_predictions(key, "TEST", clips, np.full(len(clips), mean), self.study.seed)

    # -- the stages ----------------------------------------------------------------------------------------------------

    def add_steps(self, stage: str) -> None:
        """Everything up to `stage`, in the order in which slots are given."""
        runner, variants = self.runner, self.study.variants
        runner.add(self.train_step())
        trained = [v for v in variants if v.method in ("qat", "finetune")]
        if self.study.sweep and (stage == "sweep" or (stage != "train" and trained)):
            runner.add(self.sweep_step())
        if stage in ("train", "sweep"):
            return
        for bits in self.plan.finetune:
            runner.add(self.finetune_step(bits))
        for variant in variants:
            if stage in ("evaluate", "all"):
                runner.add(self.evaluate_step(variant))
            runner.add(self.build_step(variant))

    def measure(self) -> None:
        """Latency and memory of all artifacts, when nothing else runs."""
        store, plan = self.store, self.plan
        keys = measuring.built_keys(store, plan)
        names = {key: name for name, key in plan.build.items()}
        for at in measuring.points(self.study.measure):
            where = f"{at[0]} thread{'s' * (at[0] > 1)}, batch {at[1]}"
            step = self._latency_step(keys, at, where)
            self.runner.add(step)
            missing = [key for key in keys if store.get("memory", measuring.memory_key(key, at)) is None]
            if missing:
                self.runner.add(self._memory_step(missing, at, where, names, after=step.key))
        self.runner.run()

    def _latency_step(self, keys: list[str], at: measuring.At, where: str) -> Step:
        def start() -> Any:
            options = measuring.exclusive_options(f"latency:{where}")
            artifacts = measuring.pack_artifacts(self.store, keys)
            return measuring.latency.options(**options).remote(artifacts, at, self.study.measure)

        return Step("measure", measuring.latency_key(self.store, self.plan, at), f"measure latency, {where}", start,
                    lambda value: value, slots=self.slots.holders + 1, silence_s=SILENCE_S)  # fmt: skip

    def _memory_step(self, keys: list[str], at: measuring.At, where: str, names: dict[str, str], after: str) -> Step:
        def start() -> Any:
            options = measuring.exclusive_options(f"memory:{where}")
            artifacts = measuring.pack_artifacts(self.store, keys)
            parallel = max(1, int(options["num_cpus"]) // at[0])
            return measuring.memory.options(**options).remote(artifacts, at, parallel)

        def finish(value: dict[str, dict[str, Any]]) -> dict[str, Any]:
            for key, record in value.items():
                if record.get("error"):
                    self.runner.say(f"memory of {names[key]}: {record['error']}", "yellow")
                self.store.put("memory", measuring.memory_key(key, at), record)
            return {}

        return Step(None, f"memory-{at}", f"measure memory, {where}", start, finish, after=[after],
                    slots=self.slots.holders + 1, silence_s=SILENCE_S)  # fmt: skip


def run_study(study: Study, store: Store, stage: str, console: Console, num_cpus: int | None = None) -> RunResult:
    """Run a stage of a study and what it needs. The same call again does only what is missing.

    Raises:
        QrayError: the data set is unusable, Ray cannot be had, or FP32 training failed.
    """
    began, phases = time.monotonic(), {}
    store.out.mkdir(parents=True, exist_ok=True)
    store.write_study(dump_study(study))
    root = ensure_data(study.data)
    phases["data"] = time.monotonic() - began
    manifest = load_manifest(store, root, study.data)
    phases["check videos"] = time.monotonic() - began - sum(phases.values())
    _say_manifest(manifest, console)
    plan = make_plan(study, manifest)
    results: dict[str, Result] = {}
    if stage != "table" and not is_finished(store, plan, stage):
        with ray_session(num_cpus) as dashboard:
            phases["start Ray"] = time.monotonic() - began - sum(phases.values())
            if dashboard:
                console.print(f"Ray dashboard: {dashboard}", highlight=False)
            run = Run(study, store, plan, console)
            run.add_steps(stage)
            run.runner.run()
            phases["train, build and evaluate"] = time.monotonic() - began - sum(phases.values())
            results = run.runner.results
            if stage in ("measure", "all") and measuring.built_keys(store, plan):
                run.measure()
                phases["measure"] = time.monotonic() - began - sum(phases.values())
            trained = results.get(plan.train)
            run.save_baseline()
        if trained is not None and trained.status != "ok":
            raise QrayError(f"training failed: {trained.reason}")
    table = write_table(store, plan, results)
    return RunResult(table, results, phases)


def is_finished(store: Store, plan: Plan, stage: str) -> bool:
    """Whether a stage has nothing left to do, so that no Ray need be started."""
    wanted: Sequence[tuple[str, str]] = [("train", plan.train)]
    if stage != "train" and plan.study.sweep:
        wanted = [*wanted, ("sweep", plan.sweep)]
    if stage in ("build", "evaluate", "measure", "all"):
        wanted = [*wanted, *(("build", key) for key in plan.build.values())]
    if stage in ("evaluate", "all"):
        wanted = [*wanted, *(("evaluate", key) for key in plan.evaluate.values())]
    if stage in ("measure", "all"):
        for at in measuring.points(plan.study.measure):
            wanted = [*wanted, ("measure", measuring.latency_key(store, plan, at))]
            wanted = [*wanted, *(("memory", measuring.memory_key(key, at)) for key in plan.build.values())]
    return all(store.get(kind, key) is not None for kind, key in wanted)


def _say_manifest(manifest: Any, console: Console) -> None:
    counts = ", ".join(f"{len(manifest.split(name))} {name}" for name in ("TRAIN", "VAL", "TEST"))
    console.print(f"{len(manifest.clips)} clips ({counts}), {len(manifest.rejected)} rejected", highlight=False)
    for row in manifest.rejected.head(20).itertuples():
        console.print(f"  line {row.row} {row.clip!r}: {row.reason}", style="yellow", markup=False, highlight=False)
