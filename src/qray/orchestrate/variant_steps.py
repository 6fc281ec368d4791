"""Steps of one variant: build its artifact, evaluate it on TEST; and of all of them: latency and memory, alone."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray

from qray.judge.index import At
from qray.orchestrate import measuring
from qray.orchestrate.context import RunContext
from qray.orchestrate.costs import cost_job, costs_key
from qray.orchestrate.evaluation import Evaluator
from qray.orchestrate.placement import whereabouts
from qray.orchestrate.steps import Skipped, Step
from qray.orchestrate.store import pack_folder
from qray.orchestrate.tasks import BuildJob, build, build_and_exit
from qray.orchestrate.telemetry import free_actor_name
from qray.study import INT8_METHODS, Variant
from qray.variants.artifact import read_artifact
from qray.variants.registry import build_needs, changes_process


def build_step(run: RunContext, variant: Variant) -> Step:
    """Build one artifact from the weights its method needs."""
    plan, study, key = run.plan, run.study, run.plan.build[variant.name]
    source = {"qat": plan.sweep, "finetune": plan.finetune.get(variant.weight_bits, "")}.get(variant.method, plan.train)

    def start() -> Any:
        weights = run.checkpoint(source if variant.method == "finetune" else plan.train)
        clips, qat_weights, qat_settings = {}, None, None
        if variant.method == "ptq":
            clips["calibration"] = run.clips(plan.calibration_clips())
        if variant.method in INT8_METHODS:
            clips["validation"] = run.clips(plan.parity_clips())
        if variant.method == "qat":
            best = run.best_trial(variant.weight_bits)
            qat_weights, qat_settings = run.checkpoint(best["key"]), best["qat"]
        job = BuildJob(
            variant, key, plan.isa, study.model, study.clip, study.calibration.batch_size, run.slots.slot_cpus,
            run.timeout_s, qat_settings,
        )  # fmt: skip
        options = {"num_cpus": run.slots.slot_cpus, "name": f"build:{variant.name}"} | run.nodes.options(
            build_needs(variant, plan.isa)
        )
        task = build_and_exit if changes_process(variant) else build
        return task.options(**options).remote(job, weights, clips, qat_weights)

    def finish(value: dict[str, Any]) -> dict[str, Any]:
        if "skipped" in value:
            raise Skipped(value["skipped"])
        folder = run.store.save_artifact(key, value["files"])
        files = {"files": [run.store.relative(folder / name) for name in value.pop("files")]}
        failed = run.name_failed(f"the build of {variant.name}", value.pop("failed"))
        return files | {"artifact": read_artifact(folder).facts} | failed | value

    return Step("build", key, f"build {variant.name}", start, finish, after=[source])


def evaluate_step(run: RunContext, variant: Variant) -> Step:
    """Predict TEST with one finished artifact, in an actor that loads it from its files."""
    plan, key, build_key = run.plan, run.plan.evaluate[variant.name], run.plan.build[variant.name]
    actors: list[Any] = []

    def start() -> Any:
        files = pack_folder(run.store.artifact_folder(build_key))
        name = f"evaluate:{variant.name}"
        needs = read_artifact(run.store.artifact_folder(build_key)).built.needs
        options = {"num_cpus": run.slots.slot_cpus, "name": free_actor_name(name)} | run.nodes.options(needs)
        actor = (
            ray.remote(max_restarts=0)(Evaluator)
            .options(**options)
            .remote(run.evaluate_job(variant.name, run.study.clip), files)
        )
        actors.append(actor)
        return actor.evaluate.options(name=name).remote({"TEST": run.split("TEST")})

    def finish(value: dict[str, Any]) -> dict[str, Any]:
        # The last handle gone, Ray ends the actor and its slot is free.
        actors.clear()
        predicted, failed = value["TEST"]
        clips = plan.manifest.split("TEST")
        path = run.store.save_predictions(key, "TEST", clips, predicted, run.study.seed)
        missed = run.name_failed("evaluation on TEST", failed)
        return {"files": [run.store.relative(path)]} | missed | value["whereabouts"]

    return Step("evaluate", key, f"evaluate {variant.name}", start, finish, after=[build_key])


def save_baseline(run: RunContext) -> None:
    """The mean predictor's predictions: the mean TRAIN target for every TEST clip."""
    key, clips = run.plan.baseline_key(), run.plan.manifest.split("TEST")
    if run.store.get("evaluate", key) is None:
        started = time.time()
        mean = float(run.plan.manifest.split("TRAIN")["target"].mean())
        path = run.store.save_predictions(key, "TEST", clips, np.full(len(clips), mean), run.study.seed)
        took = {"label": "evaluate mean-predictor", "started": started, "seconds": time.time() - started}
        run.store.put("evaluate", key, {"files": [run.store.relative(path)]} | took | whereabouts())


def add_measure_steps(run: RunContext) -> None:
    """Latency and memory of all artifacts at every (threads, batch), and what a clip costs on its way through the
    model; to be run when nothing else does."""
    keys = measuring.built_keys(run.store, run.plan)
    for at in measuring.points(run.study.measure):
        where = f"{at[0]} thread{'s' * (at[0] > 1)}, batch {at[1]}"
        run.runner.add(_latency_step(run, keys, at, where))
        missing = [key for key in keys if run.store.get("memory", measuring.memory_key(key, at)) is None]
        if missing:
            run.runner.add(_memory_step(run, missing, at, where))
    run.runner.add(_costs_step(run))


def _costs_step(run: RunContext) -> Step:
    def start() -> Any:
        options = measuring.exclusive_options("costs", run.nodes.able(()))
        return measuring.costs.options(**options).remote(cost_job(run.plan), run.checkpoint(run.plan.train))

    def finish(value: dict[str, Any]) -> dict[str, Any]:
        return value | run.name_failed("the costs of a clip", value["failed_clips"])

    return Step("costs", costs_key(run.plan), "measure the costs of a clip", start, finish,
                slots=run.slots.holders + 1)  # fmt: skip


def _latency_step(run: RunContext, keys: list[str], at: At, where: str) -> Step:
    def start() -> Any:
        options = measuring.exclusive_options(f"latency:{where}", run.nodes.able(measuring.needs_of(run.store, keys)))
        artifacts = measuring.pack_artifacts(run.store, keys)
        return measuring.latency.options(**options).remote(artifacts, at, run.study.measure)

    names = {key: name for name, key in run.plan.build.items()}

    def finish(value: dict[str, Any]) -> dict[str, Any]:
        errors = [f"{names[key]}: {found['error']}" for key, found in value["latency"].items() if found["error"]]
        return value | ({"unfinished": f"latency not measured of {'; '.join(errors)}"} if errors else {})

    key = measuring.latency_key(run.store, run.plan, at)
    return Step("measure", key, f"measure latency, {where}", start, finish, slots=run.slots.holders + 1)


def _memory_step(run: RunContext, keys: list[str], at: At, where: str) -> Step:
    names = {key: name for name, key in run.plan.build.items()}

    def start() -> Any:
        options = measuring.exclusive_options(f"memory:{where}", run.nodes.able(measuring.needs_of(run.store, keys)))
        artifacts = measuring.pack_artifacts(run.store, keys)
        parallel = max(1, int(options["num_cpus"]) // at[0])
        return measuring.memory.options(**options).remote(artifacts, at, parallel)

    def finish(value: dict[str, dict[str, Any]]) -> dict[str, Any]:
        for key, record in value.items():
            label = {"label": f"memory of {names[key]}, {where}"}
            run.store.put("memory", measuring.memory_key(key, at), record | label)
        errors = [f"{names[key]}: {record['unfinished']}" for key, record in value.items() if "unfinished" in record]
        return {"unfinished": f"memory not measured of {'; '.join(errors)}"} if errors else {}

    return Step(None, measuring.memory_step(at), f"measure memory, {where}", start, finish,
                slots=run.slots.holders + 1)  # fmt: skip
