"""OUT's units, predictions and artifacts -> outcomes -> results.parquet. Needs no Ray."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from qray.atomic import write_parquet
from qray.measure.latency import Latency
from qray.orchestrate.measuring import At, latency_key, memory_key, memory_step, points
from qray.orchestrate.plan import Plan
from qray.orchestrate.run_record import Result, read_run
from qray.orchestrate.store import Store
from qray.orchestrate.sweep_steps import trial_record, trial_standings
from qray.orchestrate.trials import trial_name
from qray.results.provenance import Provenance, provenance_of
from qray.results.table import Outcome, RunFacts, assemble
from qray.study import Variant
from qray.variants.artifact import read_artifact
from qray.variants.parity import kernel_fault

NOT_FINISHED = "not finished; run the same command again"


def _predictions(store: Store, key: str) -> pd.DataFrame | None:
    return store.load_predictions(key, "TEST") if store.predictions_path(key, "TEST").is_file() else None


def _predictions_path(store: Store, key: str) -> str | None:
    path = store.predictions_path(key, "TEST")
    return store.relative(path) if path.is_file() else None


def _training(store: Store, plan: Plan, variant: Variant, trial: dict[str, Any] | None) -> dict[str, Any] | None:
    """The record of what trained a variant's weights last."""
    if variant.method == "qat":
        return trial
    if variant.method == "finetune":
        return store.get("finetune", plan.finetune[variant.weight_bits])
    return store.get("train", plan.train)


def _variant(store: Store, plan: Plan, variant: Variant, results: dict[str, Result]) -> Outcome:
    build_key, key = plan.build[variant.name], plan.evaluate[variant.name]
    unit, evaluated = store.get("build", build_key), store.get("evaluate", key)
    sweep = store.get("sweep", plan.sweep) or {}
    trial = sweep.get("best", {}).get(str(variant.weight_bits)) if variant.method in ("qat", "finetune") else None
    trained = _training(store, plan, variant, trial)
    made = {"train": store.get("train", plan.train), variant.method: trained, "build": unit, "evaluate": evaluated}
    shared: dict[str, Any] = {
        "variant": variant.name, "key": build_key, "method": variant.method, "engine": variant.engine,
        "weight_bits": variant.weight_bits if variant.method in ("ptq", "qat") else None,
        "settings": trial["settings"] if trial else None, "train_s": trained["train_s"] if trained else None,
        "made": {what: provenance_of(record) for what, record in made.items() if record and (
            what != variant.method or record is not made["train"])},
    }  # fmt: skip
    if unit is None or evaluated is None:
        ended = results.get(build_key if unit is None else key) or Result("failed", reason=NOT_FINISHED)
        shared |= {"status": ended.status, "reason": ended.reason}
        if unit is None:
            return Outcome(**shared | {"made": shared["made"] | {"build": provenance_of(ended.record)}})
    artifact = read_artifact(store.artifact_folder(build_key))
    notes = artifact.built.notes
    fault = kernel_fault(notes, plan.study.parity.max_kernel_share)
    if fault is not None:
        shared |= {"status": "failed", "reason": fault}
    return Outcome(
        **shared, **_measured(store, plan, build_key, results),
        predictions=_predictions(store, key) if fault is None else None,
        predictions_path=_predictions_path(store, key),
        val_mae=trial["val_mae"] if trial and variant.method == "qat" else None,
        size_bytes=artifact.size_bytes, weights_bytes=artifact.built.weights_bytes,
        int8_mac_share=artifact.built.int8_mac_share, isa=artifact.isa, notes=notes,
        artifact=store.relative(artifact.folder), build_s=unit["seconds"],
        evaluate_s=evaluated["seconds"] if evaluated else None,
    )  # fmt: skip


def _measured(store: Store, plan: Plan, build_key: str, results: dict[str, Result]) -> dict[str, Any]:
    """What was measured of an artifact, at each (threads, batch); where that failed, the reason, until it succeeds."""
    latency, peak, errors = {}, {}, {}
    made: dict[At, dict[str, Provenance]] = {}
    for at in points(plan.study.measure):
        memory = store.attempt("memory", memory_key(build_key, at))
        timed = store.attempt("measure", latency_key(store, plan, at))
        made[at] = {what: provenance_of(r) for what, r in (("memory", memory), ("latency", timed)) if r is not None}
        if memory is not None and memory["peak_rss_mb"] is not None:
            peak[at] = memory["peak_rss_mb"]
        elif memory is not None:
            errors[at] = memory["unfinished"]
        elif (ended := results.get(memory_step(at))) is not None:
            errors[at] = str(ended.reason)
        if timed is not None and build_key in timed["latency"]:
            latency[at] = Latency(**timed["latency"][build_key])
        elif (ended := results.get(latency_key(store, plan, at))) is not None:
            latency[at] = Latency(error=ended.reason)
    return {"latency": latency, "peak_rss_mb": peak, "memory_error": errors, "measured": made}


def _trials(store: Store, plan: Plan) -> list[Outcome]:
    outcomes = []
    for trial, standing in zip(plan.trials, trial_standings(store, plan), strict=True):
        settings, total = trial["settings"], trial["settings"]["epochs"]
        reached = standing.epochs if standing.state != "run" else standing.epochs - 1
        record = trial_record(store, trial, reached) if reached else None
        reason = {
            "cut": f"stopped after epoch {standing.epochs} of {total}", "whole": None,
            "diverged": record["reason"] if record else None,
        }.get(standing.state, f"the trial did not finish: {NOT_FINISHED}")  # fmt: skip
        outcomes.append(
            Outcome(
                trial_name(trial), trial["key"], "qat", "eager", stage="trial", weight_bits=settings["weight_bits"],
                settings=settings, status="ok" if standing.state in ("cut", "whole") else "failed", reason=reason,
                val_mae=record["val_mae"] if record else None, train_s=record.get("train_s") if record else None,
                made={"trial": provenance_of(record)},
            )
        )  # fmt: skip
    return outcomes


def collect(store: Store, plan: Plan, results: dict[str, Result]) -> list[Outcome]:
    """Everything known of each variant of the study, the baseline and the trials."""
    baseline = Outcome(
        "mean-predictor", plan.baseline_key(), "baseline", "none", stage="baseline",
        predictions=_predictions(store, plan.baseline_key()),
        predictions_path=_predictions_path(store, plan.baseline_key()),
        made={"evaluate": provenance_of(store.get("evaluate", plan.baseline_key()))},
    )  # fmt: skip
    study = plan.study
    ordered = sorted(study.variants, key=lambda v: v.name != study.reference.name)
    return [*[_variant(store, plan, v, results) for v in ordered], baseline, *_trials(store, plan)]


def write_table(store: Store, plan: Plan) -> pa.Table:
    """Assemble results.parquet from OUT and write it."""
    outcomes = collect(store, plan, read_run(store).ended)
    table = assemble(outcomes, plan.study, RunFacts(datetime.now(UTC)))
    write_parquet(Path(store.out) / "results.parquet", table)
    return table
