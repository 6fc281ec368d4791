"""Finished work -> the rows of results.parquet. A pure function of what the units, predictions and artifacts hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from qray.escape import visible
from qray.measure.latency import Latency
from qray.results.agreement import bland_altman
from qray.results.comparison import Comparison, adjust, compare, pair
from qray.results.guardrails import columns
from qray.results.provenance import Provenance, provenance_columns
from qray.results.schema import RESULTS
from qray.results.speed import Timed, speed_of
from qray.results.statistics import accuracy, paired_ratio
from qray.study import Study


@dataclass(frozen=True)
class Outcome:
    """What became of one variant (or trial, or the baseline).

    predictions: the split's frame (clip, target, prediction), or None; predictions_path: where it is, relative to OUT.
    isa and notes: of the artifact. latency, peak_rss_mb and measured: by (threads, batch). made: who did what, by what
    was done ("build", ...), in the order of the work; measured: who measured, likewise ("memory", "latency").
    Everything not known is None and ends as null; a measurement that failed says why in memory_error or in its
    `Latency`.
    """

    variant: str
    key: str
    method: str
    engine: str
    status: str = "ok"
    reason: str | None = None
    stage: str = "variant"
    weight_bits: int | None = None
    settings: Mapping[str, Any] | None = None
    predictions: pd.DataFrame | None = None
    predictions_path: str | None = None
    val_mae: float | None = None
    size_bytes: int | None = None
    weights_bytes: int | None = None
    int8_mac_share: float | None = None
    isa: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    artifact: str | None = None
    latency: Mapping[tuple[int, int], Latency] = field(default_factory=dict)
    peak_rss_mb: Mapping[tuple[int, int], float] = field(default_factory=dict)
    memory_error: Mapping[tuple[int, int], str] = field(default_factory=dict)
    made: Mapping[str, Provenance] = field(default_factory=dict)
    measured: Mapping[tuple[int, int], Mapping[str, Provenance]] = field(default_factory=dict)
    train_s: float | None = None
    build_s: float | None = None
    evaluate_s: float | None = None


@dataclass(frozen=True)
class RunFacts:
    """What all rows share. created_at has its time zone; the table holds it in UTC."""

    created_at: datetime
    split: str = "TEST"
    device: str = "cpu"


#: Columns that are taken as they are from the notes of an artifact (`qray.variants.parity`).
PARITY = ("parity_max_abs", "kernel_rms", "quantization_rms", "outside_share")


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


class _Table:
    def __init__(self, outcomes: Sequence[Outcome], study: Study, facts: RunFacts) -> None:
        self.study, self.facts, self.outcomes = study, facts, outcomes
        variants = [o for o in outcomes if o.stage == "variant"]
        self.reference = next((o for o in variants if o.variant == study.reference.name), None)
        self.variants = variants
        self.baseline = next((o for o in outcomes if o.method == "baseline"), None)
        self.pairs = {o.variant: frame for o in variants if (frame := self._pair(o)) is not None}
        compared = adjust([self._compare(o) for o in variants])
        self.comparisons = {o.variant: c for o, c in zip(variants, compared, strict=True) if c is not None}

    def _pair(self, outcome: Outcome) -> pd.DataFrame | None:
        if self.reference is None or outcome is self.reference:
            return None
        own, reference = outcome.predictions, self.reference.predictions
        return pair(own, reference) if own is not None and reference is not None else None

    def _compare(self, outcome: Outcome) -> Comparison | None:
        frame = self.pairs.get(outcome.variant)
        # One prediction that is not a number makes the whole variant a failed row.
        if frame is None or not len(frame) or not np.isfinite(frame[["prediction", "reference"]].to_numpy()).all():
            return None
        target, predicted, reference = (frame[name].to_numpy() for name in ("target", "prediction", "reference"))
        return compare(target, predicted, reference, self.study.verdict)

    def _errors(self, outcome: Outcome | None) -> pd.Series | None:
        if outcome is None or outcome.predictions is None:
            return None
        frame = outcome.predictions.set_index("clip")
        return (frame["prediction"] - frame["target"]).abs()

    def accuracy(self, outcome: Outcome) -> dict[str, Any]:
        """Columns that come from predictions; clips that no variant could read are left out of all of them."""
        frame = outcome.predictions
        if frame is None:
            return {}
        boot, seed = self.study.verdict.bootstrap, self.study.verdict.seed
        if self.reference is not None and self.reference.predictions is not None:
            reference = self.reference.predictions
            frame = frame[frame["clip"].isin(reference["clip"][reference["prediction"].notna()])]
        try:
            figures = accuracy(frame["target"].to_numpy(), frame["prediction"].to_numpy(), boot, seed)
        except ValueError as error:
            return {"status": "failed", "reason": f"no accuracy: {error}"}
        row: dict[str, Any] = dict(vars(figures))
        errors = (frame["prediction"] - frame["target"]).abs().to_numpy()
        base = self._errors(self.baseline)
        if base is not None:
            base_errors = base.loc[frame["clip"]].to_numpy()
            row["baseline_mae"] = float(base_errors.mean())
            against = paired_ratio(errors, base_errors, boot, seed) if outcome is not self.baseline else None
            if against is not None:
                ratio, (low, high) = against
                row |= {
                    "ratio_to_baseline": ratio,
                    "ratio_low": low,
                    "ratio_high": high,
                    "beats_baseline": high < 1,
                }
                if high >= 1:
                    row["reason"] = (
                        f"does not beat the mean predictor: MAE {figures.mae:.2f} against {row['baseline_mae']:.2f}, "
                        f"upper bound of the ratio {high:.2f}"
                    )
        if outcome is self.reference and len(errors) > 1:
            row |= {"delta_mae": 0.0, "delta_low": 0.0, "delta_high": 0.0}
        compared = self._difference(outcome)
        if compared.get("verdict") is not None and outcome.method != "finetune":
            good = compared["verdict"] == "non-inferior" and row.get("beats_baseline") is not False
            compared["shippable"] = good and compared["guardrails"] is None
        if row.get("reason") and compared.get("reason"):
            compared["reason"] = f"{row['reason']}; {compared['reason']}"
        return row | compared

    def _difference(self, outcome: Outcome) -> dict[str, Any]:
        """Columns that come from predictions beside FP32's on the same clips."""
        found = self.comparisons.get(outcome.variant)
        if found is None or outcome.stage != "variant":
            return {}
        row: dict[str, Any] = {
            "moved_share": found.moved_share, "moved_low": found.moved_low, "moved_high": found.moved_high,
            "max_moved": found.max_moved,
        }  # fmt: skip
        if found.verdict is None:
            row["reason"] = f"no verdict: {'; '.join(found.notes)}"
        if found.delta_low is None:
            return row
        frame = self.pairs[outcome.variant]
        agreement = bland_altman(frame["prediction"].to_numpy(), frame["reference"].to_numpy())
        return row | {
            "delta_mae": found.delta, "delta_low": found.delta_low, "delta_high": found.delta_high,
            "verdict": found.verdict, "p_noninferior": found.p_noninferior, "p_holm": found.p_holm,
            "verdict_holm": found.verdict_holm, "equivalent": found.equivalent, "p_equivalent": found.p_equivalent,
            "clips_to_settle": found.clips_to_settle, "bias_to_fp32": agreement.bias, "loa_low": agreement.lower,
            "loa_high": agreement.upper,
        } | columns(found.guardrails)  # fmt: skip

    def latency(self, outcome: Outcome, at: tuple[int, int]) -> dict[str, Any]:
        """Columns of one (threads, batch)."""
        latency = outcome.latency.get(at)
        row: dict[str, Any] = {"threads": at[0], "batch": at[1], "peak_rss_mb": outcome.peak_rss_mb.get(at)}
        if at in outcome.memory_error:
            row["reason"] = f"memory not measured: {outcome.memory_error[at]}"
        if latency is None:
            return row
        timed = [Timed(o.variant, o.method, o.engine, o.latency[at]) for o in self.variants if at in o.latency]
        own = Timed(outcome.variant, outcome.method, outcome.engine, latency)
        row |= {
            "latency_p50_ms": latency.percentile(50), "latency_p90_ms": latency.percentile(90),
            "latency_p99_ms": latency.percentile(99), "latency_n": latency.n or None,
            "load_average": latency.load_average,
        }  # fmt: skip
        row |= speed_of(own, timed, at, self.study.reference.name).columns()
        if latency.error:
            row["reason"] = "; ".join([f"latency not measured: {latency.error}", *filter(None, [row.get("reason")])])
        return row

    def rows(self, outcome: Outcome) -> list[dict[str, Any]]:
        """One row per (threads, batch), or one with nulls where none was measured."""
        study, facts = self.study, self.facts
        common: dict[str, Any] = {
            "variant": outcome.variant, "key": outcome.key, "method": outcome.method, "engine": outcome.engine,
            "backbone": study.model.backbone, "seed": study.seed, "device": facts.device,
            "frames": study.clip.frames, "image_size": study.clip.image_size, "status": outcome.status,
            "reason": outcome.reason, "split": "VAL" if outcome.stage == "trial" else facts.split,
            "size_bytes": outcome.size_bytes, "weights_bytes": outcome.weights_bytes,
            "size_ratio": _ratio(outcome.size_bytes, self.reference.size_bytes if self.reference else None),
            "int8_mac_share": outcome.int8_mac_share, "artifact": outcome.artifact,
            "created_at": facts.created_at, "stage": outcome.stage, "weight_bits": outcome.weight_bits,
            "settings": json.dumps(outcome.settings, sort_keys=True) if outcome.settings is not None else None,
            "predictions": outcome.predictions_path,
            "val_mae": outcome.val_mae, "isa": outcome.isa, "train_s": outcome.train_s,
            "build_s": outcome.build_s, "evaluate_s": outcome.evaluate_s,
            **{name: outcome.notes.get(name) for name in PARITY},
        }  # fmt: skip
        if outcome.stage == "trial":
            return [common | {"mae": outcome.val_mae} | provenance_columns(outcome.made)]
        if outcome.stage == "variant":
            common["margin"] = study.verdict.margin
        common |= self.accuracy(outcome)
        measured = sorted({*outcome.latency, *outcome.peak_rss_mb, *outcome.memory_error})
        if not measured:
            return [common | provenance_columns(outcome.made)]
        rows = []
        for at in measured:
            made, latency = {**outcome.made, **outcome.measured.get(at, {})}, outcome.latency.get(at)
            if latency is not None and latency.host:
                made["latency"] = Provenance(
                    made.get("latency", Provenance()).versions, latency.host, latency.cpu_flags
                )
            row = common | self.latency(outcome, at) | provenance_columns(made)
            if common["reason"] and row["reason"] != common["reason"]:
                row["reason"] = f"{common['reason']}; {row['reason']}"
            rows.append(row)
        return rows


def assemble(outcomes: Sequence[Outcome], study: Study, facts: RunFacts) -> pa.Table:
    """The results table: schema `qray.results.schema.RESULTS`, FP32 eager first, in the order of `outcomes`."""
    table = _Table(outcomes, study, facts)
    rows = [row for outcome in outcomes for row in table.rows(outcome)]
    clean = [{name: _storable(row.get(name)) for name in RESULTS.names} for row in rows]
    return pa.Table.from_pylist(clean, schema=RESULTS)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        # A compiler's colours in a reason: no spreadsheet takes them.
        return visible(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
