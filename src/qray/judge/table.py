"""What is proved of each variant -> the rows of results.parquet."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from qray.atomic import write_parquet
from qray.escape import visible
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.guardrails import columns
from qray.judge.outcome import FIELDS, Outcome, Provenance
from qray.judge.row import Row, to_table
from qray.measure.latency import percentile
from qray.measure.serving import WITHIN
from qray.point import CUDA, Point
from qray.study import Study

#: Columns by name.
Columns = dict[str, Any]
#: Columns that are taken as they are from the notes of an artifact (`qray.engines.parity`).
PARITY = ("parity_max_abs", "kernel_rms", "quantization_rms", "outside_share")


def write_table(evidence: Evidence) -> pa.Table:
    """Write OUT/results.parquet: one row per variant and point, FP32 first, then the mean predictor and the trials."""
    table = to_table(evidence.rows)
    write_parquet(evidence.out / "results.parquet", table)
    return table


def variant_rows(variant: VariantEvidence, study: Study, reference: VariantEvidence, made: datetime) -> tuple[Row, ...]:
    """A variant's row at each point measured, or one without a measurement. Every column is there; what was
    not measured is None.

    made: when the last unit of the run had ended; UTC.
    """
    outcome = variant.outcome
    common = _common(outcome, study, made) | {"status": variant.status, "split": outcome.split}
    if outcome.stage == "variant":
        common["margin"] = study.verdict.margin
        if outcome.size_bytes and reference.outcome.size_bytes:
            common["size_ratio"] = outcome.size_bytes / reference.outcome.size_bytes
    if variant.accuracy is not None:
        common |= vars(variant.accuracy) | _against_mean(variant) | _difference(variant, reference)
    measured = sorted({*outcome.latency, *outcome.peak_rss_mb, *outcome.memory_error})
    rows = []
    for at in measured or (None,):
        own, why, provenance = _measured(variant, at, study)
        said = "; ".join(dict.fromkeys([*_reasons(variant), *why])) or None
        rows.append(_row(common | own | {"reason": said} | _provenance(provenance)))
    return tuple(rows)


def trial_row(outcome: Outcome, study: Study, made: datetime) -> Row:
    """The row of a trial of the sweep; its MAE is on VAL."""
    own = {"status": outcome.status, "reason": outcome.reason, "split": "VAL", "mae": outcome.val_mae}
    return _row(_common(outcome, study, made) | own | _provenance(outcome.made))


def _common(outcome: Outcome, study: Study, made: datetime) -> Columns:
    return {
        "variant": outcome.variant, "key": outcome.key, "method": outcome.method, "engine": outcome.engine,
        "backbone": study.model.backbone, "seed": study.seed, "frames": study.clip.frames,
        "image_size": study.clip.image_size, "size_bytes": outcome.size_bytes, "weights_bytes": outcome.weights_bytes,
        "int8_mac_share": outcome.int8_mac_share, "artifact": outcome.artifact, "created_at": made,
        "stage": outcome.stage, "weight_bits": outcome.weight_bits, "device": outcome.device,
        "cuda_graph": outcome.cuda_graph if outcome.cuda_graph or outcome.device == CUDA else None,
        "settings": _json(outcome.settings),
        "predictions": outcome.predictions_path, "val_mae": outcome.val_mae, "isa": outcome.isa,
        "train_s": outcome.train_s, "build_s": outcome.build_s, "evaluate_s": outcome.evaluate_s,
        "fp32_layers": len(outcome.notes.get("fp32_layers", ())) or None, **_mixed(outcome.notes.get("mixed")),
        **{name: outcome.notes.get(name) for name in PARITY},
        **{name: _json(outcome.notes.get(name)) for name in ("run_by", "fallbacks")},
        **{name: getattr(outcome, name) for name in ("device_rms", "sustained_ratio")},
    }  # fmt: skip


def _json(found: Mapping[str, Any] | None) -> str | None:
    return None if found is None else json.dumps(dict(found), sort_keys=True)


def _mixed(found: Mapping[str, Any] | None) -> Columns:
    if found is None:
        return {}
    kept = found["keep_fp32"]
    return {"kept_fp32": ", ".join(kept), "kept_layers": len(kept), "layers": found["layers"],
            "evaluations": found["evaluations"]}  # fmt: skip


def _against_mean(variant: VariantEvidence) -> Columns:
    found = variant.against_mean
    if found is None:
        return {}
    return {"baseline_mae": found.mae, "ratio_to_baseline": found.ratio, "ratio_low": found.low,
            "ratio_high": found.high, "beats_baseline": found.beats}  # fmt: skip


def _difference(variant: VariantEvidence, reference: VariantEvidence) -> Columns:
    """Columns that come from predictions beside FP32's on the same clips."""
    if variant.outcome is reference.outcome and variant.accuracy is not None and variant.accuracy.n_clips > 1:
        return {"delta_mae": 0.0, "delta_low": 0.0, "delta_high": 0.0}
    found, agreement = variant.comparison, variant.agreement
    if found is None or agreement is None:
        return {}
    row: Columns = {name: getattr(found, name) for name in ("moved_share", "moved_low", "moved_high", "max_moved")}
    if found.delta_low is None:
        return row
    names = ("delta_low", "delta_high", "verdict", "p_noninferior", "p_holm", "verdict_holm", "equivalent",
             "p_equivalent", "clips_to_settle")  # fmt: skip
    row |= {name: getattr(found, name) for name in names} | columns(found.guardrails)
    row |= {"delta_mae": found.delta, "bias_to_fp32": agreement.bias, "loa_low": agreement.lower,
            "loa_high": agreement.upper}  # fmt: skip
    if found.verdict is not None and variant.outcome.method != "finetune":
        beats = variant.against_mean is None or variant.against_mean.beats is not False
        row["shippable"] = found.verdict == "non-inferior" and beats and row["guardrails"] is None
    return row


def _reasons(variant: VariantEvidence) -> list[str]:
    """Why it has no figures, is no better than the mean, or has no verdict."""
    reasons = [variant.reason] if variant.reason else []
    mean, own, compared = variant.against_mean, variant.accuracy, variant.comparison
    if mean is not None and own is not None and mean.beats is False:
        reasons.append(
            f"does not beat the mean predictor: MAE {own.mae:.2f} against {mean.mae:.2f}, upper bound of the ratio "
            f"{mean.high:.2f}"
        )
    if compared is not None and compared.verdict is None:
        reasons.append(f"no verdict: {'; '.join(compared.notes)}")
    return reasons


def _measured(
    variant: VariantEvidence, at: Point | None, study: Study
) -> tuple[Columns, list[str], dict[str, Provenance]]:
    """Columns of one point, why some of them are empty, and who made and who measured it."""
    outcome, why = variant.outcome, []
    if at is None:
        return {}, [], dict(outcome.made)
    row: Columns = {**asdict(at), "peak_rss_mb": outcome.peak_rss_mb.get(at)}
    made, latency = {**outcome.made, **outcome.measured.get(at, {})}, outcome.latency.get(at)
    if latency is not None:
        used = latency.joules if latency.n else None
        row |= {
            "latency_p50_ms": latency.percentile(50), "latency_p90_ms": latency.percentile(90),
            "latency_p99_ms": latency.percentile(99), "latency_n": latency.n or None,
            "joules_per_clip": None if used is None else used / latency.n / at.batch,
            "load_average": latency.load_average, "throughput_clips_s": latency.throughput_clips_s,
            "compute_p50_ms": percentile(np.asarray(latency.compute_ms), 50),
        } | variant.speeds[at].columns()  # fmt: skip
        if latency.error and latency.error != variant.reason:
            why.append(f"latency not measured: {latency.error}")
        if latency.host:
            versions = made.get("latency", Provenance()).versions
            made["latency"] = Provenance(versions, latency.host, latency.cpu_flags)
    served, bound = outcome.served.get(at), study.measure.serving
    if served is not None:
        row["cold_start_s"] = served.cold_start_s
        if served.error and served.error != variant.reason:
            why.append(f"cold starts and streams not measured: {served.error}")
    if served is not None and served.streams and bound is not None:
        if (best := served.within(bound.bound_ms)) is None:
            why.append(f"no number of streams keeps {WITHIN} % of its calls within {bound.bound_ms:g} ms")
        else:
            row |= {"streams": best.streams, "streams_clips_s": best.clips_s, "streams_p95_ms": best.p95_ms}
    if outcome.memory_error.get(at, variant.reason) != variant.reason:
        why.append(f"memory not measured: {outcome.memory_error[at]}")
    return row, why, made


def _provenance(made: Mapping[str, Provenance]) -> dict[str, Any]:
    """Columns of a row whose figures were made by several units: `made`, by what they did, in the order of the work.

    versions: of the build. host and cpu_flags: of the measurement where there is one ("latency"), else of the build.
    Without a build: of the last unit that says. made_elsewhere: JSON, {unit: {column: its own value}} of the units that
    differ from the row's columns; null where none does.
    """
    place = "latency" if "latency" in made else "build"
    row = {
        "versions": _of(made, "build", "versions"), "host": _of(made, place, "host"),
        "cpu_flags": _of(made, place, "cpu_flags"),
    }  # fmt: skip
    others: dict[str, dict[str, Any]] = {}
    for unit, own in made.items():
        differs = {name: v for name in FIELDS if (v := getattr(own, name)) is not None and v != row[name]}
        if differs:
            others[unit] = differs
    versions = row["versions"]
    return row | {
        "versions": _json(versions),
        "made_elsewhere": _json(others or None),
    }


def _of(made: Mapping[str, Provenance], unit: str, name: str) -> Any:
    """A field as the given unit has it, else as the last unit has it that has one."""
    places = [*made.values(), *([made[unit]] if unit in made else [])]
    return next((value for place in reversed(places) if (value := getattr(place, name)) is not None), None)


def _row(columns: Columns) -> Row:
    return Row(**{name: _storable(value) for name, value in columns.items()})


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        # A compiler's colours in a reason: no spreadsheet takes them.
        return visible(value)
    if isinstance(value, datetime):
        # UTC, without saying so: a spreadsheet has no time zones.
        return value.replace(tzinfo=None)
    return None if isinstance(value, float) and not math.isfinite(value) else value
