"""What a finished run proves: OUT's table, predictions and units -> statistics per variant. No Ray, model or video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qray.results.agreement import BlandAltman, Reclassification, bland_altman, reclassify
from qray.results.comparison import MIN_CLIPS, ONE_SIDED, Comparison, adjust, compare, pair
from qray.results.run_files import ANEW, RunFiles, find_predictions, newest, read_files
from qray.results.speed import Speed, speeds_of_run
from qray.results.statistics import Accuracy, accuracy
from qray.results.timing import Timing, read_timing
from qray.study import Study
from qray.study_verdict import Verdict


@dataclass(frozen=True)
class VariantEvidence:
    """One variant of a run.

    row: its row of results.parquet (all columns) at the first (threads, batch) measured; rows: at all of them.
    clips: frame of the clips that this variant and FP32 both predicted: clip, target, prediction, and reference (what
    FP32 predicted; NaN where there is no FP32); None where there are no predictions that can be used. against_label:
    Bland-Altman of prediction against target; agreement: of prediction against FP32's. comparison: against FP32, None
    for FP32 itself and wherever it cannot be made. notes: sentences that say what could not be concluded, and why.
    """

    name: str
    row: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    clips: pd.DataFrame | None
    accuracy: Accuracy | None
    against_label: BlandAltman | None
    comparison: Comparison | None
    agreement: BlandAltman | None
    reclassified: tuple[Reclassification, ...]
    speed: Speed | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """A run.

    variants: in the table's order, FP32 first, the skipped and failed among them. reference: FP32, one of them.
    baseline: the mean predictor, not one of them. trials: rows of the sweep. units: every record of units/, each with
    its "kind" and "key". sensitivity and costs: the newest records of these kinds, or None. notes: sentences on what
    the run as a whole cannot carry (no FP32 row, one clip, an old schema).
    """

    out: Path
    study: Study | None
    variants: tuple[VariantEvidence, ...]
    reference: VariantEvidence | None
    baseline: VariantEvidence | None
    trials: tuple[dict[str, Any], ...]
    rejected: pd.DataFrame
    units: tuple[dict[str, Any], ...]
    timing: Timing | None
    sensitivity: dict[str, Any] | None
    costs: dict[str, Any] | None
    notes: tuple[str, ...] = ()


def read_evidence(out: Path) -> Evidence:
    """Read a run. A pure function of OUT: statistics are computed anew from the predictions per clip.

    Raises:
        QrayError: OUT is not the output of a run. Everything less than that becomes a note.
    """
    files = read_files(out)
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in files.rows:
        if row["stage"] == "variant":
            grouped.setdefault(row["variant"], []).append(row)
    name = _reference_name(files, grouped)
    reader = _Reader(files, name, _settings(files))
    ordered = sorted(grouped, key=lambda variant: variant != name)
    found = [reader.variant(variant, grouped[variant]) for variant in ordered]
    compared = adjust([variant.comparison for variant in found])
    variants = tuple(replace(v, comparison=c) for v, c in zip(found, compared, strict=True))
    reference = next((v for v in variants if v.name == name), None)
    baseline = next(([row] for row in files.rows if row["stage"] == "baseline"), None)
    return Evidence(
        out=out, study=files.study, variants=variants, reference=reference,
        baseline=reader.variant("mean-predictor", baseline) if baseline else None,
        trials=tuple(row for row in files.rows if row["stage"] == "trial"),
        rejected=files.rejected, units=files.units, timing=read_timing(out),
        sensitivity=newest(files.units, "sensitivity"), costs=newest(files.units, "costs"),
        notes=(*files.notes, *_run_notes(files, reference, variants)),
    )  # fmt: skip


def _reference_name(files: RunFiles, grouped: dict[str, list[dict[str, Any]]]) -> str:
    for name, rows in grouped.items():
        if (rows[0]["method"], rows[0]["engine"]) == ("fp32", "eager"):
            return name
    return files.study.reference.name if files.study else "fp32"


def _settings(files: RunFiles) -> Verdict | None:
    """What the study declared; where study.yaml is lost, the margin that the table holds; None without either."""
    if files.study is not None:
        return files.study.verdict
    margin = next((row["margin"] for row in files.rows if row["margin"]), None)
    return Verdict(margin=margin, thresholds=()) if margin is not None and margin > 0 else None


class _Reader:
    """Reads variants of one run, all of them against the same FP32."""

    def __init__(self, files: RunFiles, reference: str, settings: Verdict | None) -> None:
        self.files, self.name, self.settings = files, reference, settings
        self.boot, self.seed = (settings.bootstrap, settings.seed) if settings else (10_000, 0)
        row = next((r for r in files.rows if r["variant"] == reference and r["stage"] == "variant"), None)
        try:
            self.reference = find_predictions(files, row) if row is not None and row["status"] == "ok" else None
        except ValueError:
            self.reference = None
        if self.reference is not None and not self.reference["prediction"].notna().any():
            self.reference = None
        try:
            self.speeds = speeds_of_run(files.rows, files.units, reference)
        except (TypeError, ValueError, KeyError, AttributeError):
            # Records of another make: the table's own figures remain.
            self.speeds = {}

    def variant(self, name: str, rows: Sequence[dict[str, Any]]) -> VariantEvidence:
        """Everything about one variant, or about the mean predictor."""
        row = rows[0]
        speed = self.speeds.get((name, row["threads"], row["batch"])) if row["threads"] else None
        found = VariantEvidence(name, row, tuple(rows), None, None, None, None, None, (), speed)
        if row["status"] != "ok":
            return found
        try:
            clips = self._clips(find_predictions(self.files, row))
            own = accuracy(clips["target"].to_numpy(), clips["prediction"].to_numpy(), self.boot, self.seed)
        except ValueError as error:
            return replace(found, notes=(f"no accuracy: {error}",))
        target, predicted, reference = (clips[c].to_numpy() for c in ("target", "prediction", "reference"))
        found = replace(found, clips=clips, accuracy=own, against_label=bland_altman(predicted, target),
                        notes=_accuracy_notes(row, own, predicted))  # fmt: skip
        if row["stage"] == "baseline" or name == self.name or self.reference is None:
            return found
        found = replace(found, agreement=bland_altman(predicted, reference))
        if self.settings is None:
            return replace(found, notes=(*found.notes, "no verdict: the margin is not known"))
        comparison = compare(target, predicted, reference, self.settings)
        return replace(
            found, comparison=comparison, notes=(*found.notes, *comparison.notes),
            reclassified=reclassify(target, predicted, reference, self.settings.thresholds),
        )  # fmt: skip

    def _clips(self, own: pd.DataFrame) -> pd.DataFrame:
        if self.reference is None:
            return own[["clip", "target", "prediction"]].assign(reference=np.nan)
        clips = pair(own, self.reference)
        if clips.empty:
            raise ValueError("FP32 predicted none of its clips")
        return clips


def _accuracy_notes(row: dict[str, Any], own: Accuracy, predicted: np.ndarray) -> tuple[str, ...]:
    notes = []
    if row["mae"] is not None and not np.isclose(row["mae"], own.mae, rtol=1e-6):
        notes.append(f"its predictions give an MAE of {own.mae:.4g}, the table says {row['mae']:.4g}; {ANEW}")
    if len(predicted) > 1 and np.ptp(predicted) == 0 and row["stage"] != "baseline":
        notes.append(f"it predicts {predicted[0]:g} for every clip: a constant, which has learned nothing")
    return tuple(notes)


def _run_notes(files: RunFiles, reference: VariantEvidence | None, variants: Sequence[VariantEvidence]) -> list[str]:
    notes = []
    if reference is None:
        notes.append("there is no FP32 row: no variant can be compared, and there are no verdicts")
    elif reference.accuracy is None:
        why = reference.notes[0] if reference.notes else reference.row["reason"] or reference.row["status"]
        notes.append(f"FP32 has no predictions that can be used ({why}): there are no verdicts")
    else:
        n = reference.accuracy.n_clips
        if n < MIN_CLIPS:
            clips = "1 clip" if n == 1 else f"{n} clips"
            notes.append(f"{clips} in TEST: a verdict takes {MIN_CLIPS} or more")
        if reference.row["beats_baseline"] is False:
            notes.append("FP32 does not beat the mean predictor: to be as good as it is no merit")
    margins = {row["margin"] for row in files.rows if row["margin"] is not None}
    if files.study is not None and margins - {files.study.verdict.margin}:
        written, declared = ", ".join(f"{m:g}" for m in sorted(margins)), files.study.verdict.margin
        notes.append(f"study.yaml declares a margin of {declared:g}, the table was written at {written}; {ANEW}")
    tested = sum(v.comparison is not None and v.comparison.verdict is not None for v in variants)
    settings = _settings(files)
    if settings is not None and tested >= ONE_SIDED * (settings.bootstrap + 1):
        notes.append(
            f"{settings.bootstrap} replicates cannot show a p-value that holds for {tested} variants at once: "
            "verdicts after Holm are all inconclusive; raise verdict.bootstrap"
        )
    if variants and all(v.accuracy is None for v in variants):
        notes.append("no variant has predictions that can be used")
    return notes
