"""Which variant to ship: of those that are proved good enough and within the bounds, the fastest that separates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qray.answers.bounds import Bounds, Failure, failures
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.guardrails import Guardrail, sentences
from qray.judge.pairwise import Pairs, choose_point
from qray.judge.statistics import Estimate, VerdictWord
from qray.point import Point

#: Sizes this close (a share of the smaller) are one size: compiled code of the same network varies by as much.
SIZE_TIE = 0.01


@dataclass(frozen=True)
class Candidate:
    """A finished variant with its figures at the point asked for.

    verdict: at the margin asked for. delta: MAE less FP32's. latency_ms: the median. faster: FP32's latency over its
    own. artifact: folder under OUT. unfit: why it is out whatever the bounds; failures: the bounds that it fails.
    guardrails: as the study declared them, whatever margin was asked for.
    """

    name: str
    verdict: VerdictWord | None
    mae: float | None
    delta: Estimate | None
    latency_ms: Estimate | None
    faster: Estimate | None
    size_bytes: int | None
    size_ratio: float | None
    rss_mb: float | None
    artifact: Path | None
    unfit: str | None = None
    failures: tuple[Failure, ...] = ()
    guardrails: tuple[Guardrail, ...] = ()

    @property
    def out(self) -> str | None:
        """Why it is not to be shipped, a sentence; None for those that qualify."""
        return "; ".join([*([self.unfit] if self.unfit else []), *(f.words for f in self.failures)]) or None


@dataclass(frozen=True)
class Choice:
    """What to ship. picked is None where nothing qualifies, and `why` then says which bound fails by how much.

    reference: what speed is compared with, FP32 eager of that device.
    runner_up: second by the same rules. others: the rest, those that qualify first, each with `out` or,
    if it qualifies, the reason in `passed_over` by name. notes: what limits this choice.
    """

    out: Path
    at: Point | None
    reference: str
    bounds: Bounds
    margin: float
    picked: Candidate | None
    why: str
    runner_up: Candidate | None
    runner_up_why: str | None
    others: tuple[Candidate, ...]
    passed_over: dict[str, str]
    notes: tuple[str, ...]


def choose(
    evidence: Evidence, bounds: Bounds | None = None, threads: int | None = None, batch: int | None = None,
    device: str | None = None,
) -> Choice:  # fmt: skip
    """Name the variant to ship.

    It must be built for the device of the point, have finished, be non-inferior at the margin, break no guardrail, beat
    the mean predictor, and meet every bound; latency with the upper end of its interval. Of these the one with the
    lowest median latency leads; among those whose latency does not separate from it the smallest wins, and among these
    (within 1 %) the one with the lowest MAE.

    Raises:
        UsageError: nothing was measured at the threads, batch and device asked for.
    """
    bounds, evidence = bounds or Bounds(), evidence.on(device)
    at = choose_point(evidence, threads, batch, device)
    pairs = Pairs(evidence, at)
    margin = bounds.margin if bounds.margin is not None else evidence.study.verdict.margin
    timed = any(pairs.p50(v.name) for v in pairs.there)
    candidates = [_candidate(evidence, variant, pairs, bounds, margin, timed) for variant in pairs.there]
    qualified = [c for c in candidates if c.out is None]
    notes = [*evidence.notes, *_notes(evidence, bounds, at, timed)]
    if not qualified:
        why = _nothing(candidates, evidence, margin, pairs.reference)
        return Choice(evidence.out, at, pairs.reference.name, bounds, margin, None, why,
                      None, None, tuple(candidates), {}, tuple(notes))  # fmt: skip
    picked, why = _best(qualified, pairs)
    if picked.artifact is not None and not picked.artifact.is_dir():
        notes.append(
            f"{picked.artifact} is not there; `qray run build` makes it again, or `qray jobs fetch "
            f"--artifact {picked.name}` fetches it"
        )
    if bounds.max_latency_ms is not None and picked.latency_ms is not None and picked.latency_ms.bounds is None:
        notes.append("the latency has no interval, because it was taken in one round: the median alone meets the bound")
    rest = [c for c in qualified if c is not picked]
    runner_up, runner_up_why = _best(rest, pairs) if rest else (None, None)
    passed_over = {c.name: _against(c, picked, pairs) for c in rest}
    notes += _multiplicity(evidence, picked, bounds)
    notes += [f"guardrail not settled: {g.words}" for g in picked.guardrails if g.ok is None]
    return Choice(
        evidence.out, at, pairs.reference.name, bounds, margin, picked, why, runner_up, runner_up_why,
        tuple(sorted((c for c in candidates if c not in (picked, runner_up)), key=_by_latency)),
        passed_over, tuple(notes),
    )  # fmt: skip


def _by_latency(candidate: Candidate) -> tuple[bool, float]:
    """Those that qualify first, the fastest first among them; the others as they come."""
    if candidate.out is not None or candidate.latency_ms is None:
        return candidate.out is not None, 0.0
    return False, candidate.latency_ms.value


def _multiplicity(evidence: Evidence, picked: Candidate, bounds: Bounds) -> list[str]:
    """What is left of the verdict when it is asked of all variants at once, which is known at the declared margin."""
    compared = next(v.comparison for v in evidence.variants if v.name == picked.name)
    if compared is None or bounds.margin is not None or compared.verdict_holm in (None, compared.verdict):
        return []
    tested = sum(v.verdict is not None for v in evidence.variants)
    return [
        f"{picked.name} is {compared.verdict} by itself, but {compared.verdict_holm} once Holm's correction for the "
        f"{tested} variants compared is applied"
    ]


def _candidate(
    evidence: Evidence, variant: VariantEvidence, pairs: Pairs, bounds: Bounds, margin: float, timed: bool
) -> Candidate:
    row, compared = pairs.row(variant.name), variant.comparison
    own = Candidate(
        name=variant.name, verdict=compared.verdict_at(bounds.margin) if compared else None,
        mae=variant.accuracy.mae if variant.accuracy else None, delta=compared.difference if compared else None,
        latency_ms=pairs.p50(variant.name), faster=pairs.latency(pairs.reference.name, variant.name),
        size_bytes=row.size_bytes, size_ratio=row.size_ratio, rss_mb=row.peak_rss_mb,
        artifact=evidence.out / row.artifact if row.artifact else None,
        guardrails=compared.guardrails if compared is not None else (),
    )  # fmt: skip
    return replace(
        own, unfit=_unfit(variant, own, evidence, margin, timed, pairs.reference.name),
        failures=failures(bounds, own.latency_ms, own.size_bytes, own.rss_mb),
    )  # fmt: skip


def _unfit(
    variant: VariantEvidence, own: Candidate, evidence: Evidence, margin: float, timed: bool, reference: str
) -> str | None:
    """Why a variant is out whatever the bounds, or None."""
    row = variant.row
    if variant.status != "ok":
        return f"{variant.status}: {row.reason or 'no reason was recorded'}"
    if variant.name in (reference, evidence.reference.name):
        return "FP32 itself, which the others are compared to"
    if row.method == "finetune":
        return "a control: FP32 trained for as long as QAT, to tell what training gives from what quantization costs"
    if own.verdict is None:
        return "no verdict: " + (_first_note(variant) or "it was not compared to FP32")
    if own.verdict != "non-inferior":
        return f"{own.verdict}: {_delta(own)} against a margin of {margin:g}{_settle(variant, evidence, margin)}"
    if variant.broken:
        return f"not to be shipped, though its mean is {own.verdict}: {sentences(variant.broken)}"
    if row.beats_baseline is False:
        return "does not beat the mean predictor, so that to be as good as FP32 is no merit"
    if timed and own.latency_ms is None:
        return "its latency was not measured"
    return None


def _first_note(variant: VariantEvidence) -> str | None:
    notes = (*variant.notes, *(variant.comparison.notes if variant.comparison else ()))
    return notes[0] if notes else None


def _settle(variant: VariantEvidence, evidence: Evidence, margin: float) -> str:
    clips = variant.comparison.clips_to_settle if variant.comparison else None
    # The number belongs to the declared margin, not to one given later.
    return f"; {clips} clips would settle it" if clips and margin == evidence.study.verdict.margin else ""


def _best(qualified: Sequence[Candidate], pairs: Pairs) -> tuple[Candidate, str]:
    """The one to ship of those that qualify, and why."""
    if all(c.latency_ms is None for c in qualified):
        tied, why = list(qualified), "latency was not measured"
    else:
        lead = min(qualified, key=lambda c: c.latency_ms.value if c.latency_ms else float("inf"))
        tied = [c for c in qualified if c is lead or not _separated(pairs.latency(c.name, lead.name))]
        why = f"the fastest of the {len(qualified)} that qualify, separated from every other"
        if len(tied) > 1:
            why = f"as fast as any of the {len(qualified)} ({', '.join(c.name for c in tied)} do not separate)"
    if len(tied) == 1:
        return tied[0], "the only one that qualifies" if len(qualified) == 1 else why
    smallest = min((c.size_bytes for c in tied if c.size_bytes is not None), default=None)
    small = [c for c in tied if smallest and c.size_bytes and c.size_bytes <= smallest * (1 + SIZE_TIE)] or tied
    if len(small) == 1:
        return small[0], f"{why}, and the smallest of them"
    best = min(small, key=lambda c: (c.mae if c.mae is not None else float("inf"), c.name))
    shown = all(_separated(pairs.error(c.name, best.name), 0.0) for c in small if c is not best)
    tail = "" if shown else ", though these errors do not separate"
    return best, f"{why}, as small as any of them, and of these the one with the lowest MAE{tail}"


def _separated(compared: Estimate | None, nothing: float = 1.0) -> bool:
    """Whether the interval of a ratio (or with nothing=0 of a difference) leaves out "no difference"."""
    if compared is None or compared.low is None or compared.high is None:
        return False
    return not compared.low <= nothing <= compared.high


def _against(other: Candidate, picked: Candidate, pairs: Pairs) -> str:
    """Why one that qualifies is not the one."""
    words = []
    if (ratio := pairs.latency(other.name, picked.name)) is not None:
        span = "" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})"
        words.append(f"takes {ratio.value:.2f}x the time{span} of {picked.name}")
    if other.size_bytes and picked.size_bytes and other.size_bytes != picked.size_bytes:
        words.append(f"{other.size_bytes / picked.size_bytes:.2f}x its size")
    if (difference := pairs.error(other.name, picked.name)) is not None:
        words.append(f"MAE {difference:+.2f}")
    return f"qualifies; {', '.join(words)}" if words else "qualifies"


def _delta(own: Candidate) -> str:
    known = own.delta is not None and own.delta.bounds is not None
    return f"MAE {own.delta:+.2f} to FP32" if known else "MAE not compared to FP32"


def _nothing(candidates: Sequence[Candidate], evidence: Evidence, margin: float, reference: VariantEvidence) -> str:
    """Why nothing qualifies: the nearest miss if bounds are what fails, else the verdicts. reference: FP32 there."""
    missed = [c for c in candidates if c.unfit is None]
    if missed:
        nearest = min(missed, key=_distance)
        words = f"no variant meets every bound; nearest is {nearest.name}: {nearest.out}"
    elif not candidates:
        words = "the run holds no variant"
    elif not any(c.verdict for c in candidates):
        shared = {c.unfit for c in candidates}
        why = [*(shared if len(shared) == 1 else ()), *evidence.notes[:1]]
        words = "no variant has a verdict" + (f": {why[0]}" if why else "")
    elif any(c.verdict == "non-inferior" for c in candidates):
        good = next(c for c in candidates if c.verdict == "non-inferior")
        words = f"no variant qualifies; nearest is {good.name}: {good.out}"
    else:
        nearest = min((c for c in candidates if c.verdict), key=_upper)
        words = (
            f"no variant is non-inferior at a margin of {margin:g}; nearest is {nearest.name}, {_delta(nearest)}, "
            f"whose upper bound is {_upper(nearest) - margin:.2f} over it"
        )
    fp32 = next((c for c in candidates if c.name == reference.name and reference.status == "ok"), None)
    if fp32 is not None and fp32.artifact is not None and not fp32.failures:
        words += f". {fp32.name} itself, unquantized, meets the bounds: {fp32.artifact}"
    return words


def _upper(candidate: Candidate) -> float:
    """Upper bound of the difference to FP32."""
    return candidate.delta.high if candidate.delta and candidate.delta.high is not None else float("inf")


def _distance(candidate: Candidate) -> tuple[float, str]:
    """By how large a share the worst of its bounds is missed."""
    return max(f.over / f.limit if f.over is not None else float("inf") for f in candidate.failures), candidate.name


def _notes(evidence: Evidence, bounds: Bounds, at: Point | None, timed: bool) -> list[str]:
    notes = []
    declared = evidence.study.verdict.margin
    if bounds.margin is not None and bounds.margin != declared:
        notes.append(
            f"the margin {bounds.margin:g} was given after the run (the study declared {declared:g}): a margin chosen "
            "with the results in sight is not declared beforehand, and its verdicts are not the study's"
        )
    if not timed:
        notes.append("latency was not measured" + (f" at {at}" if at else " in this run"))
    if at is not None and (others := [device for device in evidence.devices if device != at.device]):
        notes.append(f"on {at.device}; for {' or '.join(others)} ask with --device")
    return notes
