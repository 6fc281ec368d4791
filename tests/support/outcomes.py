"""Outcomes and tables for the tests of results: made up, but through the real code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from qray.judge.clips import clips_of
from qray.judge.judge import judge_outcomes
from qray.judge.outcome import Outcome, Provenance
from qray.judge.row import to_table
from qray.measure.latency import Latency
from qray.point import Point
from qray.study import Study

CLIPS = 60
RNG = np.random.default_rng(0)
TARGET = RNG.normal(55, 12, CLIPS)
NOISE = RNG.normal(0, 3, CLIPS)
STUDY = Study.model_validate(
    {"name": "s", "variants": [{"name": "fp32", "method": "fp32", "engine": "eager"}], "verdict": {"bootstrap": 400}}
)
MADE = {"build": Provenance({"torch": "2"}, "this host", "avx2 fma")}
AT = Point(threads=1, batch=1)
MADE_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def predictions(predicted: Sequence[float] | np.ndarray, target: np.ndarray = TARGET) -> np.ndarray:
    return clips_of([f"c{i}" for i in range(len(target))], target, predicted)


def latency(milliseconds: float, calls: int = 250, **more: Any) -> Latency:
    return Latency([[milliseconds] * calls], 0.5, "the measuring host", "avx2", **more)


def outcome(name: str, method: str, engine: str, noise: float = 1.0, ms: float | None = None, **more: Any) -> Outcome:
    """A finished variant whose errors are `noise` times the common ones."""
    finished: dict[str, Any] = {
        "predictions": predictions(TARGET + noise * NOISE), "size_bytes": 4_000_000, "weights_bytes": 3_000_000,
        "latency": {} if ms is None else {AT: latency(ms)}, "int8_mac_share": 0.0, "artifact": f"artifacts/{name}",
        "made": MADE,
    }  # fmt: skip
    return Outcome(name, f"key of {name}", method, engine, **(finished | more))


def fp32(**more: Any) -> Outcome:
    return outcome("fp32", "fp32", "eager", **({"ms": 80.0} | more))


def baseline() -> Outcome:
    mean = predictions(np.full(CLIPS, 55.0))
    return Outcome("mean-predictor", "key of the mean", "baseline", "none", stage="baseline", predictions=mean)


def trial(val_mae: float | None, **more: Any) -> Outcome:
    settings: Mapping[str, Any] = {"weight_bits": 8, "lr": 1e-4, "keep_fp32": []}
    return Outcome("qat-w8-abcdef", "key of a trial", "qat", "eager", stage="trial", settings=settings,
                   val_mae=val_mae, **more)  # fmt: skip


def table(*outcomes: Outcome, study: Study = STUDY) -> pa.Table:
    """results.parquet of these; where the mean predictor is not among them, without its row."""
    mean = [] if any(o.stage == "baseline" for o in outcomes) else [replace(baseline(), predictions=None)]
    variants, judged, trials = judge_outcomes([*outcomes, *mean], study, MADE_AT)
    shown = [*variants, *([] if mean else [judged])]
    return to_table([row for one in shown for row in one.rows] + list(trials))


def row(name: str, *outcomes: Outcome, study: Study = STUDY) -> dict[str, Any]:
    """The only row of a name."""
    (found,) = [r for r in table(*outcomes, study=study).to_pylist() if r["variant"] == name]
    return found
