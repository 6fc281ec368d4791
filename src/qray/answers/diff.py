"""What changed between two runs, and which of it is a regression."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qray.answers.changes import Change, changes, flat, hosts_of, versions_of
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.guardrails import guard
from qray.judge.pairwise import compare_clips
from qray.judge.statistics import Estimate, VerdictWord
from qray.point import Point
from qray.study_verdict import Verdict

#: Share of the margin that the MAE may grow by from one run to the next. A verdict compares a variant with the FP32 of
#: its own run and says nothing when both got worse; and were a whole margin allowed, each run could spend it anew.
TOLERANCE_SHARE = 0.1
#: Growth of an artifact's size that is a regression.
SIZE_GROWTH = 0.05
#: What is known of a variant, from good to bad; no verdict is no better than an inconclusive one.
RANK: dict[str | None, int] = {"non-inferior": 0, "inconclusive": 1, None: 1, "inferior": 2}


@dataclass(frozen=True)
class Side:
    """One variant in one run. verdict: at the margin that this run declared. latency_ms: median, first point."""

    status: str
    reason: str | None
    mae: float | None
    mae_low: float | None
    mae_high: float | None
    verdict: VerdictWord | None
    size_bytes: int | None
    latency_ms: float | None
    point: Point | None
    host: str | None

    @property
    def where(self) -> tuple[str | None, Point | None]:
        """Host and point of the latency: of two, both must be the same."""
        return self.host, self.point


@dataclass(frozen=True)
class VariantDiff:
    """One variant in both runs; a or b is None where that run does not have it.

    mae: MAE in B less MAE in A with its 95 % interval. paired: over the `n_common` clips that both predicted, else over
    two samples of clips. verdict_a, verdict_b: both at A's margin. flipped: whether they differ. latency: B's over A's,
    where both were taken on one host at one point. broken: guardrails, as A declared them, that B breaks and A does
    not, as sentences. regressions: sentences.
    """

    name: str
    a: Side | None
    b: Side | None
    mae: Estimate | None
    paired: bool
    n_common: int
    verdict_a: VerdictWord | None
    verdict_b: VerdictWord | None
    flipped: bool
    latency: float | None
    broken: tuple[str, ...]
    regressions: tuple[str, ...]


@dataclass(frozen=True)
class RunDiff:
    """Two runs. study, versions, host: what changed.

    regressions: every one, by its variant's name. unchecked: comparisons that could not be made, by variant; where
    there are any, the absence of regressions says less.
    """

    a: str
    b: str
    study: tuple[Change, ...]
    versions: tuple[Change, ...]
    host: tuple[Change, ...]
    variants: tuple[VariantDiff, ...]
    margin: float
    tolerance: float
    regressions: tuple[str, ...]
    unchecked: tuple[str, ...]
    notes: tuple[str, ...]


def diff_runs(a: Evidence, b: Evidence, tolerance: float | None = None) -> RunDiff:
    """Compare run B with run A, variant by variant of the same name.

    A regression is a variant that A finished and B did not; a verdict that got worse, both held against A's margin; a
    guardrail that B breaks and A does not, both as A declared it; an MAE that grew by more than `tolerance` (target
    units; default: a tenth of A's margin) with an interval wholly above 0; an artifact that grew by more than 5 %; an
    error or a size that A knew and B does not. Latency never is: two runs are not interleaved. What A does not know
    cannot get worse: it is `unchecked`.
    """
    settings = a.study.verdict
    allowed = tolerance if tolerance is not None else TOLERANCE_SHARE * settings.margin
    names = list(dict.fromkeys(v.name for run in (a, b) for v in run.variants))
    in_a, in_b = ({v.name: v for v in run.variants} for run in (a, b))
    variants = tuple(_variant(name, in_a.get(name), in_b.get(name), settings, allowed) for name in names)
    return RunDiff(
        a=str(a.out), b=str(b.out), study=changes(flat(a.study), flat(b.study)),
        versions=changes(versions_of(a), versions_of(b)), host=changes(hosts_of(a), hosts_of(b)),
        variants=variants, margin=settings.margin, tolerance=allowed,
        regressions=tuple(f"{v.name}: {words}" for v in variants for words in v.regressions),
        unchecked=tuple(words for v in variants for words in _unchecked(v)), notes=tuple(_notes(a, b, variants)),
    )  # fmt: skip


def _variant(
    name: str, a: VariantEvidence | None, b: VariantEvidence | None, settings: Verdict, allowed: float
) -> VariantDiff:
    side_a, side_b = _side(a), _side(b)
    mae, paired, common = (None, False, 0) if a is None or b is None else compare_clips(a, b, settings)
    verdict_a, verdict_b = (v.comparison.verdict_at(settings.margin) if v and v.comparison else None for v in (a, b))
    broken = _broken(a, b, settings)
    both = side_a is not None and side_b is not None
    latency = None
    if side_a and side_b and side_a.latency_ms and side_b.latency_ms and side_a.where == side_b.where:
        latency = side_b.latency_ms / side_a.latency_ms
    return VariantDiff(
        name, side_a, side_b, mae, paired, common, verdict_a, verdict_b, both and verdict_a != verdict_b, latency,
        broken, tuple(_regressions(side_a, side_b, verdict_a, verdict_b, broken, mae, allowed)),
    )  # fmt: skip


def _side(variant: VariantEvidence | None) -> Side | None:
    if variant is None:
        return None
    row, own = variant.row, variant.accuracy
    return Side(
        status=row.status, reason=row.reason,
        mae=own.mae if own else None, mae_low=own.mae_low if own else None, mae_high=own.mae_high if own else None,
        verdict=variant.verdict, size_bytes=row.size_bytes, latency_ms=row.latency_p50_ms, point=row.point,
        host=row.host,
    )  # fmt: skip


def _broken(a: VariantEvidence | None, b: VariantEvidence | None, settings: Verdict) -> tuple[str, ...]:
    """What B breaks of the guardrails that A keeps, where both have a verdict."""
    if a is None or b is None or not all(v.comparison is not None and v.comparison.guardrails for v in (a, b)):
        return ()
    clips = [v.predicted for v in (a, b) if v.predicted is not None]
    then, now = (guard(of["target"], of["prediction"], of["reference"], settings) for of in clips)
    return tuple(
        f"{ours.name} ({ours.words})" for his, ours in zip(then, now, strict=True)
        if ours.ok is False and his.ok is not False
    )  # fmt: skip


def _regressions(
    a: Side | None, b: Side | None, verdict_a: VerdictWord | None, verdict_b: VerdictWord | None,
    broken: tuple[str, ...], mae: Estimate | None, allowed: float,
) -> Iterator[str]:  # fmt: skip
    if a is None or a.status != "ok":
        return
    if b is None:
        yield "lost: it is not in B"
        return
    if b.status != "ok":
        yield f"lost: {b.status} in B ({b.reason or 'no reason was recorded'})"
        return
    if RANK[verdict_b] > RANK[verdict_a]:
        yield f"verdict went from {verdict_a or 'none'} to {verdict_b or 'none'} at A's margin"
    for guardrail in broken:
        yield f"a guardrail that held in A is broken in B: {guardrail}"
    if mae is not None and mae.low is not None and mae.low > 0 and mae.value > allowed:
        yield (
            f"MAE grew by {mae.value:.3f} ({mae.low:+.3f} to {mae.high:+.3f}), more than the {allowed:g} that are "
            "tolerated"
        )
    if a.size_bytes and b.size_bytes and b.size_bytes > a.size_bytes * (1 + SIZE_GROWTH):
        growth = b.size_bytes / a.size_bytes - 1
        yield f"size grew by {growth:.1%}, from {a.size_bytes / 1e6:.2f} to {b.size_bytes / 1e6:.2f} MB"


def _unchecked(variant: VariantDiff) -> Iterator[str]:
    """What could not be compared of a variant that B finished, and is no regression for that."""
    a, b = variant.a, variant.b
    if a is None or b is None or b.status != "ok":
        return
    if a.status != "ok":
        yield f"{variant.name}: {a.status} in A ({a.reason}), so that nothing of it could get worse"
    elif variant.mae is not None and variant.mae.low is None:
        yield f"{variant.name}: too few clips for an interval of the error's growth"


def _notes(a: Evidence, b: Evidence, variants: tuple[VariantDiff, ...]) -> Iterator[str]:
    for word, run in (("A", a), ("B", b)):
        for note in run.notes:
            yield f"{word}: {note}"
    margins = a.study.verdict.margin, b.study.verdict.margin
    if margins[0] != margins[1]:
        yield f"the margin changed from {margins[0]:g} to {margins[1]:g}: verdicts are compared at {margins[0]:g}"
    both = [v for v in variants if v.mae is not None]
    if not {v.name for v in a.variants} & {v.name for v in b.variants}:
        yield "the runs have no variant in common"
    if any(not v.paired for v in both):
        yield (
            "the runs did not predict the same clips: where it says unpaired, the interval is that of two samples and "
            "much wider"
        )
    elif any(v.mae is not None and v.mae.bounds not in (None, (0.0, 0.0)) for v in both):
        yield (
            "intervals are paired over clips and know nothing of what another training seed would have given: a "
            "network trained anew can differ by chance"
        )
    if any(v.latency is not None for v in variants):
        yield "latencies of two runs are not interleaved: on one host an indication, never a regression"
    elif any(v.a and v.b and v.a.latency_ms and v.b.latency_ms for v in variants):
        yield "latencies were taken on different hosts or at different points, and are not compared"
