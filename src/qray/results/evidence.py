"""What a finished run proves: OUT's table, predictions and units -> statistics per variant. No Ray, model or video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from qray.results.agreement import BlandAltman, Reclassification
from qray.results.comparison import Comparison
from qray.results.speed import Speed
from qray.results.statistics import Accuracy
from qray.results.timing import Timing
from qray.study import Study


@dataclass(frozen=True)
class VariantEvidence:
    """One variant of a run.

    row: its row of results.parquet (all columns) at the first (threads, batch) measured; rows: at all of them.
    clips: frame of the clips that this variant and FP32 both predicted: clip, target, prediction, and reference (what
    FP32 predicted); None where there are no predictions that can be used. against_label: Bland-Altman of prediction
    against target. comparison: against FP32, None for FP32 itself and wherever it cannot be made. notes: sentences
    that say what could not be concluded, and why.
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

    variants: in the table's order, FP32 first, the skipped and failed among them. trials: rows of the sweep.
    units: every record of units/, each with its "kind" and "key". sensitivity and costs: the newest records of these
    kinds, or None. notes: sentences on what the run as a whole cannot carry (no FP32 row, one clip, an old schema).
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
    """Read a run.

    Raises:
        QrayError: OUT is not the output of a run. Everything less than that becomes a note.
    """
    raise NotImplementedError
