"""Where the speed comes from: ratios of latencies that were taken interleaved, with intervals, split by cause."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qray.judge.statistics import LEVEL, Estimate, mean_interval
from qray.measure.latency import Latency

#: Methods that compute in fewer bits, by the word for what they do; only of them can be said whether it pays.
REDUCED = {"ptq": "INT8", "qat": "INT8", "dynamic": "INT8", "bf16": "bf16", "fp16": "fp16", "tf32": "TF32"}


@dataclass(frozen=True)
class Timed:
    """One variant's latency at one point."""

    name: str
    method: str
    #: And whether as a CUDA graph: of two ways to execute the same, the one is not the other's FP32.
    engine: tuple[str, bool]
    latency: Latency


@dataclass(frozen=True)
class Speed:
    """How fast one variant is at one point, in ratios that are over 1 where it is the faster.

    total: to FP32 eager; it is engine (FP32 on this variant's engine to FP32 eager) times precision (this variant to
    FP32 on its engine). best_fp32: the fastest FP32 variant, whatever its engine; against_best: the ratio to it, whose
    interval allows for its having been chosen among all of them. pays:
    whether computing in fewer bits is faster than that, None where that is not settled or not the question (FP32).
    """

    total: Estimate | None
    engine: Estimate | None
    precision: Estimate | None
    best_fp32: str | None
    against_best: Estimate | None
    pays: bool | None

    def columns(self) -> dict[str, Any]:
        """The same as columns of results.parquet."""

        def parts(name: str, of: Estimate | None) -> dict[str, float | None]:
            return {name: of.value, f"{name}_low": of.low, f"{name}_high": of.high} if of else {}

        return {
            "speedup_engine": self.engine.value if self.engine else None,
            "speedup_precision": self.precision.value if self.precision else None,
            "best_fp32": self.best_fp32, "pays": self.pays,
        } | parts("speedup", self.total) | parts("speedup_best_fp32", self.against_best)  # fmt: skip


def ratio(above: Latency, below: Latency, comparisons: int = 1) -> Estimate | None:
    """Latency `above` over latency `below`: geometric mean over the rounds of the ratio of the two blocks' medians.

    The interval is Student's t on the logarithms of these ratios. Block i of both ran in the same round, so that
    what slows a whole round cancels; the calls of a block resemble each other, so that the round and not the call is
    what is sampled (Georges, Buytaert & Eeckhout, Statistically Rigorous Java Performance Evaluation, OOPSLA 2007,
    sections 3.2 and 3.3; Kalibera & Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013). With ten rounds a
    percentile bootstrap is too narrow (Hesterberg, What Teachers Should Know About the Bootstrap, The American
    Statistician 69, 2015); the tests simulate the coverage of both.

    comparisons: of how many ratios this is one whose intervals are to hold together (Bonferroni). None where either was
    not measured, or the two are not of the same rounds.
    """
    first, second = above.medians, below.medians
    if first is None or second is None or len(first) != len(second):
        return None
    found = over_rounds(np.log(first) - np.log(second), comparisons)
    return Estimate(math.exp(found.value), *(math.exp(bound) for bound in found.bounds or ()))


def over_rounds(values: np.ndarray, comparisons: int = 1) -> Estimate:
    """Mean of float64 (rounds,) and its 95 % interval, Student's t; none for a single round."""
    if len(values) < 2:
        return Estimate(float(values.mean()))
    return Estimate(*mean_interval(values, 1 - (1 - LEVEL) / comparisons))


def speed_of(own: Timed, measured: Sequence[Timed], reference: str) -> Speed:
    """The speed of one variant among all that were measured with it, at the same point.

    reference: name of the FP32 eager variant of that device.
    """
    base = next((t for t in measured if t.name == reference), None)
    fp32 = [t for t in measured if t.method == "fp32"]
    same_engine = next((t for t in fp32 if t.engine == own.engine), None)
    best, against_best = _best(own, fp32)
    return Speed(
        total=_over(base, own), engine=_over(base, same_engine), precision=_over(same_engine, own),
        best_fp32=best, against_best=against_best,
        pays=settled(against_best.low, against_best.high) if against_best and own.method in REDUCED else None,
    )  # fmt: skip


def _over(above: Timed | None, below: Timed | None) -> Estimate | None:
    return ratio(above.latency, below.latency) if above and below else None


def _best(own: Timed, fp32: Sequence[Timed]) -> tuple[str | None, Estimate | None]:
    """The FP32 variant that this one is the least ahead of, which is the fastest of them; and the ratio to it.

    It is chosen by the same calls that it is compared by, so that of several equal ones the luckiest is taken: the
    interval is the widest that all of them need together (Hsu, Multiple Comparisons: Theory and Methods, 1996, ch. 4).
    """
    others = [t for t in fp32 if t.name != own.name]
    found = [(t.name, r) for t in fp32 if (r := ratio(t.latency, own.latency, max(1, len(others)))) is not None]
    return min(found, key=lambda pair: pair[1].value, default=(None, None))


def settled(low: float | None, high: float | None) -> bool | None:
    """Whether a ratio is over 1 (True) or under 1 (False); None while its interval holds 1 or there is none."""
    if low is None or high is None or low <= 1 <= high:
        return None
    return low > 1
