"""Clips that belong together, so that a fault that sits in one place is not lost in the mean of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from qray.judge.statistics import Accuracy, accuracy
from qray.study_verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

#: Classes by quantiles of the target, where the thresholds make fewer than two.
QUANTILE_CLASSES = 4
#: Clips at an end of FP32's predictions that are looked at together: so many, and twice, four times as many and so on,
#: up to a quarter of all.
END_CLIPS = 5
#: A share, a quantile or a place is broken by no fewer clips: one or two that moved far are an accident of few clips,
#: or of noise with heavy tails. With three, moved_share and tail refuse at most 0.5 % of simulated honest variants with
#: t(3) noise of half the margin, and find a tenth of 300 clips shuffled at one end in 87 to 100 %.
LEAST_MOVED = 3


@dataclass(frozen=True)
class Group:
    """Clips that are looked at together: their name in a sentence, and which of all they are, bool (n,)."""

    name: str
    clips: np.ndarray


def classes(target: np.ndarray, settings: Verdict) -> list[Group]:
    """Classes that the thresholds make of the labels, lowest first; quantiles of the target where those are too few.

    A class of fewer than `min_class_clips` joins the one above it, the last one the one below, so that no clip is
    looked at by nobody.
    """
    least = settings.guardrails.min_class_clips
    found = _classes(target, sorted(set(settings.thresholds)), least)
    parts = min(QUANTILE_CLASSES, len(target) // least)
    if len(found) < 2 and parts > 1:
        found = _classes(target, np.unique(np.quantile(target, np.arange(1, parts) / parts)), least)
    return found


def _classes(target: np.ndarray, edges: Sequence[float] | np.ndarray, least: int) -> list[Group]:
    inside = np.searchsorted(edges, target, side="right")
    bounds, begun, total = [0], 0, len(target)
    for at in range(len(edges)):
        begun += int((inside == at).sum())
        total -= int((inside == at).sum())
        if begun >= least and total >= least:
            bounds.append(at + 1)
            begun = 0
    found = []
    for low, high in zip(bounds, [*bounds[1:], len(edges) + 1], strict=True):
        above = f"{edges[low - 1]:.4g}" if low else None
        below = f"{edges[high - 1]:.4g}" if high <= len(edges) else None
        name = f"{above} to {below}" if above and below else f"{above} and over" if above else f"under {below}"
        mask = (inside >= low) & (inside < high)
        found.append(Group(f"the {int(mask.sum())} clips labelled {name}" if above or below else "all clips", mask))
    return found


def places(target: np.ndarray, reference: np.ndarray, settings: Verdict) -> list[Group]:
    """Where a fault may sit that is nowhere else: the classes, small ones too, and the ends of FP32's predictions."""
    found = classes(target, settings)
    known = {group.clips.tobytes() for group in found}
    small = _classes(target, sorted(set(settings.thresholds)), LEAST_MOVED)
    found += [group for group in small if group.clips.tobytes() not in known]
    order, count = np.argsort(reference, kind="stable"), END_CLIPS
    while 4 * count <= len(reference):
        for word, at in (("lowest", order[:count]), ("highest", order[-count:])):
            mask = np.zeros(len(reference), dtype=bool)
            mask[at] = True
            found.append(Group(f"the {count} clips that FP32 predicts {word}", mask))
        count *= 2
    return [group for group in found if not group.clips.all()]


@dataclass(frozen=True)
class ClassError:
    """Error of one variant on the clips whose label is in one class; None where no clip is."""

    name: str
    n: int
    error: Accuracy | None


def class_errors(clips: pd.DataFrame | np.ndarray | None, verdict: Verdict) -> list[ClassError]:
    """Error by class of the label, the study's thresholds between them: the intervals are of each class alone."""
    if clips is None or not len(clips) or not verdict.thresholds:
        return []
    edges = sorted(verdict.thresholds)
    names = [f"< {edges[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(edges)),
             f"≥ {edges[-1]:g}"]  # fmt: skip
    truth, predicted = (np.asarray(clips[name], float) for name in ("target", "prediction"))
    which = np.searchsorted(edges, truth, side="right")
    found = []
    for number_, name in enumerate(names):
        mask = which == number_
        error = accuracy(truth[mask], predicted[mask], verdict.bootstrap, verdict.seed) if mask.any() else None
        found.append(ClassError(name, int(mask.sum()), error))
    return found
