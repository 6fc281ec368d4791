"""The same study with several seeds: what holds over retraining, not only over clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qray.errors import QrayError, UsageError
from qray.judge.clips import errors, rows_of, shared
from qray.judge.comparison import MIN_CLIPS
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.statistics import VerdictWord, verdict
from qray.judge.two_level import two_level
from qray.study_verdict import Verdict

#: Settings that may differ between the runs of a study with several seeds.
FREE = ("name", "seed", "measure", "evaluation")
#: With two, the interval held the truth in under 0.90 of the simulated studies in which seeds matter most.
MIN_SEEDS = 3


@dataclass(frozen=True)
class OverSeeds:
    """One variant over seeds, on n clips that all of its runs predicted; target units.

    mae and delta (to FP32 of the same seed) are means over seeds and clips, their intervals 95 % two-level ones
    (`two_level`); delta_sd is the standard deviation of the seeds' own deltas, None for one seed. The deltas are None
    for FP32 itself. verdict as for one run, but for the method and not for one trained model;
    None below three seeds. broken: guardrails that its runs break, each with its seed: with any, it is not to be
    shipped, whatever its verdict.
    """

    name: str
    seeds: tuple[int, ...]
    n: int
    mae: float
    mae_low: float | None
    mae_high: float | None
    delta: float | None
    delta_low: float | None
    delta_high: float | None
    delta_sd: float | None
    deltas: tuple[float, ...]
    verdict: VerdictWord | None
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class SeedEvidence:
    """Runs of one study that differ in their seed: its variants in the first run's order, and what could not be
    concluded."""

    outs: tuple[Path, ...]
    seeds: tuple[int, ...]
    margin: float
    variants: tuple[OverSeeds, ...]
    notes: tuple[str, ...] = field(default=())


def over_seeds(runs: Sequence[Evidence]) -> SeedEvidence:
    """Put runs of one study with different seeds together.

    Raises:
        UsageError: there are no two runs.
        QrayError: one has no study or no FP32, two have the same seed or different margins, or they
            share no clip.
    """
    notes: list[str] = []
    seeds = _check(runs, notes)
    study = runs[0].study
    names = list(dict.fromkeys(v.name for run in runs for v in run.variants))
    variants = []
    for name in names:
        found = [(s, v) for s, run in zip(seeds, runs, strict=True) for v in run.variants if v.name == name]
        usable = [(s, v) for s, v in found if v.predicted is not None and v.accuracy is not None]
        if not usable:
            reason = found[0][1].row.reason or "no predictions that can be used"
            notes.append(f"{name}: {found[0][1].row.status} in every run: {reason}")
            continue
        missing = [str(s) for s in seeds if s not in [own for own, _ in usable]]
        if missing:
            notes.append(f"{name}: nothing from seed {', '.join(missing)}")
        clips = _common([variant for _, variant in usable])
        most = max(variant.accuracy.n_clips for _, variant in usable if variant.accuracy is not None)
        if not clips:
            notes.append(f"{name}: its runs share no clip")
            continue
        if len(clips) < most:
            notes.append(f"{name}: {len(clips)} of {most} clips are common to its runs")
        variants.append(_over(name, usable, clips, study.verdict, notes))
    return SeedEvidence(tuple(run.out for run in runs), seeds, study.verdict.margin, tuple(variants), tuple(notes))


def _check(runs: Sequence[Evidence], notes: list[str]) -> tuple[int, ...]:
    if len(runs) < 2:
        raise UsageError("seeds: name the outputs of two runs or more, of one study with different `seed`")
    seeds: list[int] = []
    for run in runs:
        if run.reference.accuracy is None:
            raise QrayError(f"{run.out}: {run.notes[0] if run.notes else 'no FP32 predictions'}; leave this run out")
        if run.study.seed in seeds:
            raise QrayError(
                f"{run.out}: its seed {run.study.seed} is that of {runs[seeds.index(run.study.seed)].out}: a second "
                "run of one seed is no second seed; run it with --set seed=N"
            )
        seeds.append(run.study.seed)
    first = runs[0]
    for run in runs[1:]:
        if run.study.verdict.margin != first.study.verdict.margin:
            raise QrayError(
                f"{run.out}: its margin is {run.study.verdict.margin:g}, that of {first.out} is "
                f"{first.study.verdict.margin:g}; a verdict takes one margin"
            )
        ours, theirs = (study.canonical() for study in (first.study, run.study))
        for settings in (ours, theirs):
            # The same clips may lie in another folder; whether they are the same is looked at clip by clip.
            settings["data"].pop("dir")
        differ = [key for key in ours if key not in FREE and ours[key] != theirs[key]]
        if differ:
            notes.append(f"{run.out} differs from {first.out} in more than its seed: {', '.join(differ)}")
        if not len(_common([first.reference, run.reference])):
            raise QrayError(
                f"{run.out} and {first.out} share no TEST clip with the same target; compare runs of one set"
            )
    return tuple(seeds)


def _common(variants: Sequence[VariantEvidence]) -> list[str]:
    """Clips that all of these predicted, with the same target."""
    common, *others = (v.predicted for v in variants if v.predicted is not None)
    for other in others:
        common, _ = shared(common, other)
    return list(common["clip"])


def _over(
    name: str, found: Sequence[tuple[int, VariantEvidence]], clips: list[str], settings: Verdict, notes: list[str]
) -> OverSeeds:
    rows = [rows_of(variant.predicted, clips) for _, variant in found if variant.predicted is not None]
    own, base = (np.stack([errors(one, of) for one in rows]) for of in ("prediction", "reference"))
    n, draws = len(clips), (settings.bootstrap, settings.seed)
    low = high = delta = delta_low = delta_high = spread = word = None
    deltas: tuple[float, ...] = ()
    if n > 1:
        _, (low, high) = two_level(own, *draws)
    if found[0][1].comparison is not None:
        difference = own - base
        deltas = tuple(float(d) for d in difference.mean(1))
        delta = float(difference.mean())
        spread = float(np.std(deltas, ddof=1)) if len(deltas) > 1 else None
        if n > 1:
            _, (delta_low, delta_high) = two_level(difference, *draws)
        word = _verdict(name, [v for _, v in found], n, (delta_low, delta_high), settings.margin, notes)
    broken = tuple(f"seed {s}: {one.words}" for s, v in found for one in v.broken)
    return OverSeeds(
        name, tuple(s for s, _ in found), n, float(own.mean()), low, high, delta, delta_low, delta_high, spread, deltas,
        word, broken,
    )  # fmt: skip


def _verdict(
    name: str, found: Sequence[VariantEvidence], n: int, bounds: tuple[float | None, float | None], margin: float,
    notes: list[str],
) -> VerdictWord | None:  # fmt: skip
    """The verdict over seeds, where each seed and their number can carry one."""
    low, high = bounds
    without = next((v for v in found if v.verdict is None), None)
    if without is not None:
        why = without.notes[0] if without.notes else "one of its runs has none"
        notes.append(f"{name}: no verdict: {why}")
        return None
    if len(found) < MIN_SEEDS:
        notes.append(
            f"{name}: no verdict over {len(found)} seed{'s' * (len(found) > 1)}: {MIN_SEEDS} or more are needed"
        )
        return None
    if n < MIN_CLIPS or low is None or high is None or not math.isfinite(high - low):
        notes.append(f"{name}: no verdict from {n} common clips; {MIN_CLIPS} or more are needed")
        return None
    return verdict(low, high, margin)
