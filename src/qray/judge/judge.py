"""The only caller of the statistics: a run as OUT holds it -> what it proves. Needs no Ray, model or video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from qray.judge.agreement import bland_altman, reclassify
from qray.judge.clips import errors, pair, rows_of
from qray.judge.comparison import MIN_CLIPS, ONE_SIDED, adjust, compare
from qray.judge.elsewhere import outcomes_of_kits
from qray.judge.evidence import AgainstMean, Evidence, VariantEvidence
from qray.judge.outcome import Outcome, outcomes_of
from qray.judge.ratio import Speed, Timed, speed_of
from qray.judge.row import Row
from qray.judge.run import Run, read_run
from qray.judge.statistics import accuracy, paired_ratio
from qray.judge.table import trial_row, variant_rows
from qray.point import Point
from qray.study import Study


def read_evidence(out: Path) -> Evidence:
    """Read and judge a run. A pure function of OUT.

    Raises:
        QrayError: OUT is not the output of a run. Everything less than that becomes a note.
    """
    return judge(read_run(out))


def judge(run: Run) -> Evidence:
    """All that the run proves."""
    outcomes = outcomes_of(run)
    variants, baseline, trials = judge_outcomes(outcomes, run.study, run.ended_at)
    carried, notes = outcomes_of_kits(run.out, outcomes)
    elsewhere = [judge_outcomes(each, run.study, run.ended_at)[0][1:] for each in carried]
    return Evidence(
        out=run.out, study=run.study, variants=variants, baseline=baseline, trials=trials,
        elsewhere=tuple(variant for each in elsewhere for variant in each),
        left_out=run.rejected, units=tuple(run.units.values()), timing=run.timing,
        sensitivity=run.shared("sensitivity"), costs=run.shared("costs"),
        notes=(*run.notes, *_run_notes(run.study, variants), *notes),
    )  # fmt: skip


def judge_outcomes(
    outcomes: Sequence[Outcome], study: Study, made: datetime
) -> tuple[tuple[VariantEvidence, ...], VariantEvidence, tuple[Row, ...]]:
    """The variants, FP32 eager first as the outcomes have it, the mean predictor, and the rows of the trials.

    made: when the last unit of the run had ended.
    """
    judge = _Judge(outcomes, study)
    found = [judge.variant(outcome) for outcome in judge.variants]
    compared = adjust([variant.comparison for variant in found])
    judged = [replace(v, comparison=c) for v, c in zip(found, compared, strict=True)]
    variants = tuple(replace(v, rows=variant_rows(v, study, judged[0], made)) for v in judged)
    mean = judge.variant(judge.baseline)
    trials = tuple(trial_row(outcome, study, made) for outcome in outcomes if outcome.stage == "trial")
    return variants, replace(mean, rows=variant_rows(mean, study, judged[0], made)), trials


class _Judge:
    """Judges variants of one run, all of them against the same FP32 and the same mean predictor."""

    def __init__(self, outcomes: Sequence[Outcome], study: Study) -> None:
        self.study, self.boot, self.seed = study, study.verdict.bootstrap, study.verdict.seed
        self.variants = [outcome for outcome in outcomes if outcome.stage == "variant"]
        self.baseline = next(outcome for outcome in outcomes if outcome.stage == "baseline")
        self.fp32 = self.variants[0]
        known = self.fp32.predictions is not None and not np.isnan(self.fp32.predictions["prediction"]).all()
        self.reference = self.fp32.predictions if known else None

    def variant(self, outcome: Outcome) -> VariantEvidence:
        """Everything about one variant, or about the mean predictor."""
        found = VariantEvidence(outcome, outcome.status, outcome.reason, speeds=self._speeds(outcome))
        if outcome.predictions is None:
            unusable = outcome.reason if outcome.predictions_path and outcome.reason else None
            return replace(found, notes=(unusable,)) if unusable else found
        try:
            clips = self._clips(outcome.predictions)
            own = accuracy(clips["target"], clips["prediction"], self.boot, self.seed)
        except ValueError as error:
            return replace(found, status="failed", reason=f"no accuracy: {error}", notes=(f"no accuracy: {error}",))
        target, predicted, reference = (clips[name] for name in ("target", "prediction", "reference"))
        found = replace(
            found, predicted=clips, accuracy=own, against_mean=self._against_mean(outcome, clips),
            against_label=bland_altman(predicted, target), notes=_constant(outcome, predicted),
        )  # fmt: skip
        if outcome.stage == "baseline" or outcome is self.fp32 or self.reference is None:
            return found
        comparison = compare(target, predicted, reference, self.study.verdict)
        return replace(
            found, agreement=bland_altman(predicted, reference), comparison=comparison,
            notes=(*found.notes, *comparison.notes),
            reclassified=reclassify(target, predicted, reference, self.study.verdict.thresholds),
        )  # fmt: skip

    def _clips(self, own: np.ndarray) -> np.ndarray:
        """A variant's clips that FP32 could read: what no variant could read is left out of all figures."""
        if self.reference is None:
            return own
        clips = pair(own, self.reference)
        if not len(clips):
            raise ValueError("FP32 predicted none of its clips")
        return clips

    def _against_mean(self, outcome: Outcome, clips: np.ndarray) -> AgainstMean | None:
        mean = self.baseline.predictions
        if mean is None or not set(clips["clip"]) <= set(mean["clip"]):
            return None
        base = errors(rows_of(mean, clips["clip"]))
        found = AgainstMean(float(base.mean()))
        ratio = paired_ratio(errors(clips), base, self.boot, self.seed) if outcome is not self.baseline else None
        return found if ratio is None else AgainstMean(found.mae, ratio[0], *ratio[1])

    def _speeds(self, outcome: Outcome) -> dict[Point, Speed]:
        found = {}
        # On a machine that a kit was carried to it is that of the device that the kit was made for.
        built_for = next((v.device for v in self.study.variants if v.name == outcome.variant), None)
        fp32 = None if built_for is None else self.study.reference_on(built_for)
        for at in outcome.latency:
            timed = [Timed(o.variant, o.method, (o.engine, o.cuda_graph), o.latency[at])
                     for o in self.variants if at in o.latency]  # fmt: skip
            own = next(t for t in timed if t.name == outcome.variant)
            found[at] = speed_of(own, timed, fp32.name if fp32 is not None else self.fp32.variant)
        return found


def _constant(outcome: Outcome, predicted: np.ndarray) -> tuple[str, ...]:
    if outcome.stage == "baseline" or len(predicted) < 2 or np.ptp(predicted) > 0:
        return ()
    return (f"it predicts {predicted[0]:g} for every clip: a constant, which has learned nothing",)


def _run_notes(study: Study, variants: Sequence[VariantEvidence]) -> list[str]:
    notes, reference = [], variants[0]
    if reference.accuracy is None:
        why = reference.notes[0] if reference.notes else reference.reason or reference.status
        notes.append(f"FP32 has no predictions that can be used ({why}): there are no verdicts")
    else:
        n = reference.accuracy.n_clips
        if n < MIN_CLIPS:
            clips = "1 clip" if n == 1 else f"{n} clips"
            notes.append(f"{clips} in TEST: a verdict takes {MIN_CLIPS} or more")
        if reference.against_mean is not None and reference.against_mean.beats is False:
            notes.append("FP32 does not beat the mean predictor: to be as good as it is no merit")
    tested = sum(v.verdict is not None for v in variants)
    if tested >= ONE_SIDED * (study.verdict.bootstrap + 1):
        notes.append(
            f"{study.verdict.bootstrap} replicates cannot show a p-value that holds for {tested} variants at once: "
            "verdicts after Holm are all inconclusive; raise verdict.bootstrap"
        )
    if all(v.accuracy is None for v in variants):
        notes.append("no variant has predictions that can be used")
    return notes
