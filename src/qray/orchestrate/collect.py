"""OUT's units, predictions and artifacts -> outcomes -> results.parquet. Needs no Ray."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from qray.atomic import write_parquet
from qray.measure.host import cpu_flags, host_name, versions
from qray.measure.latency import Latency
from qray.orchestrate.measuring import latency_units, memory_units
from qray.orchestrate.plan import Plan
from qray.orchestrate.steps import Result
from qray.orchestrate.store import Store
from qray.orchestrate.trial import trial_name
from qray.results.table import Outcome, RunFacts, assemble
from qray.study import Variant
from qray.variants.artifact import read_artifact
from qray.variants.parity import kernel_fault
from qray.variants.registry import missing_requirement


def _predictions(store: Store, key: str) -> pd.DataFrame | None:
    return store.load_predictions(key, "TEST") if store.predictions_path(key, "TEST").is_file() else None


def _predictions_path(store: Store, key: str) -> str | None:
    path = store.predictions_path(key, "TEST")
    return store.relative(path) if path.is_file() else None


def _train_seconds(store: Store, plan: Plan, variant: Variant, trial: dict[str, Any] | None) -> float | None:
    unit = store.get("train", plan.train)
    if variant.method == "qat":
        return trial["seconds"] if trial else None
    if variant.method == "finetune":
        unit = store.get("finetune", plan.finetune[variant.weight_bits])
    return unit["seconds"] if unit else None


def _variant(store: Store, plan: Plan, variant: Variant, results: dict[str, Result]) -> Outcome:
    build_key, key = plan.build[variant.name], plan.evaluate[variant.name]
    unit, evaluated = store.get("build", build_key), store.get("evaluate", key)
    sweep = store.get("sweep", plan.sweep) or {}
    trial = sweep.get("best", {}).get(str(variant.weight_bits)) if variant.method in ("qat", "finetune") else None
    shared: dict[str, Any] = {
        "variant": variant.name, "key": build_key, "method": variant.method, "engine": variant.engine,
        "weight_bits": variant.weight_bits if variant.method in ("ptq", "qat") else None,
        "settings": trial["settings"] if trial else None, "train_s": _train_seconds(store, plan, variant, trial),
    }  # fmt: skip
    if unit is None or evaluated is None:
        ended = results.get(build_key)
        if ended is None or ended.status == "ok":
            ended = results.get(key)
        if ended is None and unit is None and (lacking := missing_requirement(variant, plan.isa)):
            ended = Result("skipped", reason=lacking)
        status = ended.status if ended and ended.status != "ok" else "failed"
        reason = ended.reason if ended and ended.reason else "not finished; run the same command again"
        if unit is None:
            return Outcome(**shared, status=status, reason=reason)
        shared |= {"status": status, "reason": reason}
    artifact = read_artifact(store.artifact_folder(build_key))
    notes = artifact.built.notes
    fault = kernel_fault(notes, plan.study.parity.max_kernel_share)
    if fault is not None:
        shared |= {"status": "failed", "reason": fault}
    latency, peak = {}, {}
    for at, record in latency_units(store, plan):
        if build_key in record["latency"]:
            latency[at] = Latency(**record["latency"][build_key])
    for at, record in memory_units(store, plan, build_key):
        if record.get("peak_rss_mb") is not None:
            peak[at] = record["peak_rss_mb"]
    return Outcome(
        **shared, predictions=_predictions(store, key) if fault is None else None,
        predictions_path=_predictions_path(store, key),
        val_mae=trial["val_mae"] if trial and variant.method == "qat" else None,
        size_bytes=artifact.size_bytes, weights_bytes=artifact.built.weights_bytes,
        int8_mac_share=artifact.built.int8_mac_share, isa=artifact.isa, notes=notes,
        artifact=store.relative(artifact.folder), latency=latency, peak_rss_mb=peak, build_s=unit["seconds"],
        evaluate_s=evaluated["seconds"] if evaluated else None,
    )  # fmt: skip


def _trials(store: Store, plan: Plan) -> list[Outcome]:
    outcomes = []
    for trial in plan.trials:
        settings = trial["settings"]
        record = store.get("trial", trial["key"])
        shared: dict[str, Any] = {
            "variant": trial_name(trial), "key": trial["key"], "method": "qat",
            "engine": "eager", "stage": "trial", "weight_bits": settings["weight_bits"], "settings": settings,
        }  # fmt: skip
        if record is None:
            outcomes.append(Outcome(**shared, status="failed", reason="the trial did not finish"))
        else:
            outcomes.append(
                Outcome(
                    **shared,
                    status=record["status"],
                    reason=record["reason"],
                    val_mae=record["val_mae"],
                    train_s=record["seconds"],
                )
            )
    return outcomes


def collect(store: Store, plan: Plan, results: dict[str, Result]) -> list[Outcome]:
    """Everything known of each variant of the study, the baseline and the trials."""
    baseline = Outcome(
        "mean-predictor", plan.baseline_key(), "baseline", "none", stage="baseline",
        predictions=_predictions(store, plan.baseline_key()),
        predictions_path=_predictions_path(store, plan.baseline_key()),
    )  # fmt: skip
    study = plan.study
    ordered = sorted(study.variants, key=lambda v: v.name != study.reference.name)
    return [*[_variant(store, plan, v, results) for v in ordered], baseline, *_trials(store, plan)]


def write_table(store: Store, plan: Plan, results: dict[str, Result]) -> pa.Table:
    """Assemble results.parquet from OUT and write it."""
    facts = RunFacts(host_name(), " ".join(sorted(cpu_flags())), versions(), datetime.now(UTC))
    table = assemble(collect(store, plan, results), plan.study, facts)
    write_parquet(Path(store.out) / "results.parquet", table)
    return table
