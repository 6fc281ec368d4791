"""What a finished run proves: statistics per variant, and its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qray.judge.agreement import BlandAltman, Reclassification
from qray.judge.comparison import Comparison
from qray.judge.guardrails import Guardrail
from qray.judge.outcome import Outcome
from qray.judge.ratio import Speed
from qray.judge.row import Row
from qray.judge.statistics import Accuracy, VerdictWord
from qray.judge.timing import Timing
from qray.measure.latency import Latency
from qray.point import CPU, Point
from qray.study import Study

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class AgainstMean:
    """A variant against the mean predictor on the same clips: the latter's MAE in target units, and the ratio of the
    variant's MAE to it with its 95 % interval; None where the clips carry none."""

    mae: float
    ratio: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def beats(self) -> bool | None:
        """Whether it is better with confidence; None where that is not known."""
        return None if self.high is None else self.high < 1


@dataclass(frozen=True)
class VariantEvidence:
    """One variant of a run, or the mean predictor."""

    #: What became of it.
    outcome: Outcome
    #: "ok", "skipped" or "failed", with the reason: the outcome's own, or that its predictions carry no accuracy.
    status: str
    reason: str | None
    #: Clips that it and FP32 both predicted (CLIP); None where there are no predictions that can be used.
    predicted: np.ndarray | None = None
    accuracy: Accuracy | None = None
    against_mean: AgainstMean | None = None
    #: Bland-Altman of prediction against target, and of prediction against FP32's.
    against_label: BlandAltman | None = None
    agreement: BlandAltman | None = None
    #: Against FP32; None for FP32 itself and wherever it cannot be made.
    comparison: Comparison | None = None
    reclassified: tuple[Reclassification, ...] = ()
    speeds: Mapping[Point, Speed] = field(default_factory=dict)
    #: Sentences that say what could not be concluded, and why.
    notes: tuple[str, ...] = ()
    #: Its rows of results.parquet, one for each point measured, or one without.
    rows: tuple[Row, ...] = ()

    @property
    def name(self) -> str:
        """Its name in the study."""
        return self.outcome.variant

    @property
    def device(self) -> str:
        """What it is built for, evaluated and measured on."""
        return self.outcome.device or CPU

    def seen(self, there: VariantEvidence) -> VariantEvidence:
        """This variant with the speed and memory that it has elsewhere."""
        rows = tuple(replace(row, beats_baseline=self.row.beats_baseline) for row in there.rows)
        return replace(self, outcome=there.outcome, speeds=there.speeds, rows=rows)

    @property
    def clips(self) -> pd.DataFrame | None:
        """`predicted` as a frame."""
        import pandas as pd

        return None if self.predicted is None else pd.DataFrame(self.predicted)

    @property
    def verdict(self) -> VerdictWord | None:
        """Of its comparison with FP32; None where that carries none."""
        return self.comparison.verdict if self.comparison is not None else None

    @property
    def broken(self) -> tuple[Guardrail, ...]:
        """The guardrails that it breaks."""
        return self.comparison.broken if self.comparison is not None else ()

    @property
    def row(self) -> Row:
        """Its row at the first point measured."""
        return self.rows[0]

    @property
    def speed(self) -> Speed | None:
        """Its speed at the first point measured."""
        return self.speeds.get(self.row.point) if self.row.point is not None else None

    def latency(self, at: Point | None) -> Latency | None:
        """Its calls at a point; None where it was not timed there."""
        found = self.outcome.latency.get(at) if at is not None else None
        return found if found is not None and found.medians is not None else None


@dataclass(frozen=True)
class Evidence:
    """A run."""

    out: Path
    study: Study
    #: In the study's order, FP32 eager first; the skipped and failed among them.
    variants: tuple[VariantEvidence, ...]
    #: The mean predictor.
    baseline: VariantEvidence
    #: Rows of the trials of the sweep.
    trials: tuple[Row, ...]
    #: Clips left out: row, clip, reason.
    left_out: pa.Table
    #: Every record of units/, each with its "kind" and "key".
    units: tuple[Mapping[str, Any], ...]
    timing: Timing | None
    #: The records of these units, or None.
    sensitivity: Mapping[str, Any] | None
    costs: Mapping[str, Any] | None
    #: Sentences on what the run as a whole cannot carry (no FP32 row, one clip).
    notes: tuple[str, ...] = ()
    #: Variants as devices ran them to which a kit was carried, each compared with FP32 on the kit's VAL clips.
    elsewhere: tuple[VariantEvidence, ...] = ()

    @property
    def reference(self) -> VariantEvidence:
        """FP32 eager, to which the others are compared."""
        return self.variants[0]

    def reference_on(self, device: str) -> VariantEvidence | None:
        """FP32 eager of a device, to which the speed of the others there is compared."""
        fp32 = self.study.reference_on(device)
        return next((v for v in self.variants if fp32 is not None and v.name == fp32.name), None)

    @property
    def devices(self) -> list[str]:
        """Those that variants are built for, the CPU first; then those to which a kit was carried."""
        own = sorted({variant.device for variant in self.variants})
        return [*own, *sorted({variant.device for variant in self.elsewhere})]

    def on(self, device: str | None) -> Evidence:
        """This run where the device is one of its own; else with the variants of a device that a kit was carried to, in
        the place of all but FP32: speed and memory are theirs, and errors those on TEST, since the artifact is the same
        and predicted there what it must."""
        home = {variant.name: variant for variant in self.variants}
        there = [variant for variant in self.elsewhere if variant.device == device]
        if not there:
            return self
        found = [home[v.name].seen(v) if v.status == home[v.name].status == "ok" else v for v in there]
        return replace(self, variants=(self.reference, *found))

    @property
    def rejected(self) -> pd.DataFrame:
        """`left_out` as a frame."""
        frame: pd.DataFrame = self.left_out.to_pandas()
        return frame

    @property
    def rows(self) -> list[Row]:
        """Every row of results.parquet."""
        judged = (*self.variants, self.baseline, *self.elsewhere)
        return [row for one in judged for row in one.rows] + list(self.trials)
