"""What became of each variant, trial and the mean predictor: the units that run.json names, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qray.engines.parity import kernel_fault
from qray.graph.unit import Result
from qray.judge.clips import read_predictions
from qray.judge.index import TrialState
from qray.judge.run import Run
from qray.measure.latency import Latency
from qray.measure.serving import Served, Streams
from qray.point import Point
from qray.study import Variant

NOT_FINISHED = "not finished; run the same command again"
#: Of a `Provenance`.
FIELDS = ("versions", "host", "cpu_flags")


@dataclass(frozen=True)
class Provenance:
    """What a unit's record says of where it ran; None where it does not say."""

    versions: Mapping[str, str] | None = None
    host: str | None = None
    cpu_flags: str | None = None


def provenance_of(record: Mapping[str, Any] | None) -> Provenance:
    """The provenance that a record holds."""
    return Provenance(**{name: (record or {}).get(name) or None for name in FIELDS})


@dataclass(frozen=True)
class Outcome:
    """What became of one variant (or trial, or the baseline).

    key: of what it is (the build; the evaluation of the baseline). predictions: of `split` (CLIP), or
    None; predictions_path: where it is, relative to OUT. isa and notes: of the artifact. latency,
    peak_rss_mb, served and measured: by point. made: who did what, by what was done ("build", ...), in the order of
    the work; measured: who measured, likewise ("memory", "latency", "serving"). Everything not known is None; a
    measurement that failed says why in memory_error, or in its `Latency` or `Served`.
    """

    variant: str
    key: str
    method: str
    engine: str
    status: str = "ok"
    reason: str | None = None
    stage: str = "variant"
    device: str | None = None
    cuda_graph: bool = False
    weight_bits: int | None = None
    settings: Mapping[str, Any] | None = None
    predictions: np.ndarray | None = None
    predictions_path: str | None = None
    val_mae: float | None = None
    size_bytes: int | None = None
    weights_bytes: int | None = None
    int8_mac_share: float | None = None
    isa: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    artifact: str | None = None
    latency: Mapping[Point, Latency] = field(default_factory=dict)
    peak_rss_mb: Mapping[Point, float] = field(default_factory=dict)
    memory_error: Mapping[Point, str] = field(default_factory=dict)
    served: Mapping[Point, Served] = field(default_factory=dict)
    made: Mapping[str, Provenance] = field(default_factory=dict)
    measured: Mapping[Point, Mapping[str, Provenance]] = field(default_factory=dict)
    train_s: float | None = None
    build_s: float | None = None
    evaluate_s: float | None = None
    split: str = "TEST"
    #: Of a device that a kit was carried to: RMS of its predictions less those of where the artifact was built, and the
    #: last median of sustained work over the first.
    device_rms: float | None = None
    sustained_ratio: float | None = None


def outcomes_of(run: Run) -> list[Outcome]:
    """Everything known of each variant of the study, FP32 eager first, of the baseline, and of the trials."""
    reference = run.study.reference.name
    ordered = sorted(run.study.variants, key=lambda variant: variant.name != reference)
    trials = [_trial(run, trial) for trial in run.index.trials]
    return [*(_understood(run, variant) for variant in ordered), _baseline(run), *trials]


def _understood(run: Run, variant: Variant) -> Outcome:
    try:
        return _variant(run, variant)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"its records in units/ cannot be understood ({type(error).__name__}: {error}); run again with --fresh"
        key = run.index.variants[variant.name]["build"]
        return Outcome(variant.name, key, variant.method, variant.engine, status="failed", reason=reason,
                       device=variant.device, cuda_graph=variant.cuda_graph)  # fmt: skip


def _variant(run: Run, variant: Variant) -> Outcome:
    keys = run.index.variants[variant.name]
    built, evaluated = run.unit("build", keys["build"]), run.unit("evaluate", keys["evaluate"])
    train, trial = run.shared("train"), run.unit("trial", keys.get("trial"))
    trained = {"qat": trial, "finetune": run.unit("finetune", keys.get("finetune"))}.get(variant.method, train)
    units = {"train": train, variant.method: None if trained is train else trained, "build": built,
             "evaluate": evaluated}  # fmt: skip
    found = Outcome(
        variant.name, keys["build"], variant.method, variant.engine,
        weight_bits=variant.weight_bits if variant.method in ("ptq", "qat") else None,
        device=variant.device, cuda_graph=variant.cuda_graph,
        settings=trial["settings"] if trial else None, train_s=trained["train_s"] if trained else None,
        made={what: provenance_of(record) for what, record in units.items() if record is not None},
    )  # fmt: skip
    if built is None or evaluated is None:
        ended = run.index.ended.get(keys["build" if built is None else "evaluate"])
        ended = ended or Result("failed", reason=NOT_FINISHED)
        found = replace(found, status=ended.status, reason=ended.reason)
        if built is None:
            return replace(found, made={**found.made, "build": provenance_of(ended.record)})
    assert built is not None
    artifact = built["artifact"]
    found = replace(
        found, **_measured(run, variant.name, variant.device, keys["build"]), artifact=f"artifacts/{keys['build']}",
        size_bytes=artifact["size_bytes"], weights_bytes=artifact["weights_bytes"],
        int8_mac_share=artifact["int8_mac_share"], isa=artifact["isa"], notes=artifact["notes"],
        val_mae=trial["val_mae"] if trial and variant.method == "qat" else None,
        build_s=built.get("search_s", built["seconds"]),
        evaluate_s=evaluated["seconds"] if evaluated else None,
    )  # fmt: skip
    if evaluated is not None:
        found = _with_predictions(run, found, evaluated)
    fault = kernel_fault(found.notes, run.study.parity.max_kernel_share)
    return found if fault is None else replace(found, status="failed", reason=fault, predictions=None)


def _with_predictions(run: Run, outcome: Outcome, evaluated: Mapping[str, Any]) -> Outcome:
    path = next(iter(evaluated.get("files", ())), "predictions of its record")
    try:
        return replace(outcome, predictions=read_predictions(run.out, path), predictions_path=path)
    except ValueError as error:
        return replace(outcome, status="failed", reason=f"no accuracy: {error}", predictions_path=path)


def _measured(run: Run, variant: str, device: str, build_key: str) -> dict[str, Any]:
    """What was measured of an artifact, at each point of its device; where that failed, the reason, until it
    succeeds."""
    latency, peak, errors, served = {}, {}, {}, {}
    made: dict[Point, dict[str, Provenance]] = {}
    for units in (units for units in run.index.points if units.device == device):
        at, ended = units.point, run.index.ended
        memory, timed = run.unit("memory", units.memory[variant]), run.attempt("measure", units.latency)
        service = run.attempt("serve", units.serving)
        by = {"memory": memory, "latency": timed, "serving": service}
        made[at] = {what: provenance_of(record) for what, record in by.items() if record}
        if memory is not None:
            peak[at] = memory["peak_rss_mb"]
        elif (failed := ended.get(units.memory[variant])) is not None and failed.reason:
            errors[at] = failed.reason
        calls = timed["latency"].get(build_key) if timed else None
        if calls is not None:
            latency[at] = _calls(calls)
        elif (failed := ended.get(units.latency)) is not None:
            latency[at] = Latency(error=failed.reason)
        if service and (of_own := service["served"].get(build_key)) is not None:
            streams = [Streams(**each) for each in of_own["streams"]]
            served[at] = Served(of_own["cold_starts_s"], streams, of_own["error"])
        elif units.serving is not None and (failed := ended.get(units.serving)) is not None:
            served[at] = Served(error=failed.reason)
    return {"latency": latency, "peak_rss_mb": peak, "memory_error": errors, "served": served, "measured": made}


def _calls(record: Mapping[str, Any]) -> Latency:
    """A latency, tried: what is no list of calls is found out here and nowhere later."""
    latency = Latency(**record)
    _ = latency.medians
    return latency


def _baseline(run: Run) -> Outcome:
    record = run.unit("evaluate", run.index.baseline)
    found = Outcome(
        "mean-predictor", run.index.baseline, "baseline", "none", stage="baseline",
        made={"evaluate": provenance_of(record)},
    )  # fmt: skip
    return found if record is None else _with_predictions(run, found, record)


def _trial(run: Run, trial: TrialState) -> Outcome:
    record, total = run.attempt("trial", trial.record) or {}, trial.settings["epochs"]
    reason = {
        "cut": f"stopped after epoch {trial.epochs} of {total}", "whole": None, "diverged": record.get("reason"),
    }.get(trial.state, f"the trial did not finish: {NOT_FINISHED}")  # fmt: skip
    return Outcome(
        trial.name, trial.key, "qat", "eager", stage="trial", weight_bits=trial.settings["weight_bits"],
        settings=trial.settings, status="ok" if trial.state in ("cut", "whole") else "failed", reason=reason,
        val_mae=record.get("val_mae"), train_s=record.get("train_s"), made={"trial": provenance_of(record)},
    )  # fmt: skip
