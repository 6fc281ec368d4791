"""What is said of a variant, a measurement and a run on more than one page: one phrase for one thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qray.judge.costs import Costs
from qray.judge.evidence import VariantEvidence
from qray.judge.guardrails import Guardrail
from qray.judge.ratio import REDUCED, settled
from qray.judge.row import Row
from qray.judge.statistics import Estimate
from qray.words.document import Tone
from qray.words.figures import NOT_MEASURED, counted, fold, number, percent

NO_REASON = "no reason was recorded"
#: Of a mean that is good enough and a guardrail that is broken.
NOT_TO_SHIP = "non-inferior, but not to be shipped"
TONES: Mapping[str | None, Tone] = {"non-inferior": "good", "inferior": "bad", "inconclusive": "unsure"}


def verdict_word(variant: VariantEvidence) -> str:
    """The verdict as a page for people has it; of what did not come out, its status."""
    if variant.row.status != "ok":
        return variant.row.status
    refused = variant.verdict == "non-inferior" and variant.broken
    return NOT_TO_SHIP if refused else variant.verdict or NOT_MEASURED


def tone_of(variant: VariantEvidence) -> Tone:
    """The colour of a variant's verdict."""
    if variant.row.status != "ok":
        return "dim"
    return "bad" if variant.broken else TONES.get(variant.verdict, "")


def state_words(status: str, reason: str | None) -> str:
    """What became of a variant, and why; where it came out, what is not known of it."""
    return f"{status}: {reason or NO_REASON}" if status != "ok" else reason or ""


def not_to_ship(why: str | None) -> str:
    """That it is refused, and which guardrails refuse it."""
    return f"not to be shipped: {why}"


def settle_words(n: int, clips: int | None) -> str:
    """Of an inconclusive verdict on n clips: how many in all would settle it."""
    needed = f"about {clips:,} clips would settle it" if clips else "no number of clips would settle it"
    return f"inconclusive on {n:,} clips; {needed}"


def pay_words(row: Row) -> str | None:
    """Whether fewer bits pay; None for methods that compute in FP32."""
    word, value = REDUCED.get(row.method), row.speedup_best_fp32
    if word is None:
        return None
    if row.best_fp32 is None or value is None:
        return f"whether {word} pays here is not known: it was not measured together with FP32 on any engine"
    against = Estimate(value, row.speedup_best_fp32_low, row.speedup_best_fp32_high)
    compared = f"{fold(against)} the speed of {row.best_fp32}, the fastest FP32 engine"
    pays = settled(against.low, against.high)
    if pays is None:
        why = "an interval takes two blocks or more" if against.low is None else "the interval holds 1"
        return f"whether {word} pays here is not settled: {compared}; {why}"
    return f"{word} {'pays' if pays else 'does not pay'} here: {compared}"


def costs_words(costs: Costs) -> str:
    """What one clip costs, in a line."""
    (first, ms), *rest = costs.parts.items()
    told = ", ".join([f"{first} {number(ms.value)} ms", *(f"{name} {number(part.value)}" for name, part in rest)])
    return (
        f"one clip of {costs.frames} frames costs: {told} (FP32 eager, {counted(costs.threads, 'thread')}): "
        f"{percent(costs.outside.value)} of the time is outside the network"
    )


def guardrail_words(guardrails: Sequence[Guardrail]) -> str:
    """Every figure beside its limit, in a line: "tail 1.3 (to 2.1, limit 7.5), tied_low 1 (limit 1)"."""
    found = []
    for one in guardrails:
        bounds = [f"to {one.high:.3g}"] if one.high is not None else []
        bounds += [f"limit {one.limit:.3g}"] if one.limit is not None else []
        value = "not known" if one.value is None else f"{one.value:.3g} ({', '.join(bounds)})"
        found.append(f"{one.name} {value}{'' if one.ok is not None else ', not settled'}")
    return ", ".join(found)


def left_words(row: Row) -> str:
    """What of an INT8 variant is none."""
    left = counted(row.fp32_layers or 0, "convolution")
    return (
        f"{left} in FP32, left so by a rule of the engine's quantizer; {percent(row.int8_mac_share, 1)} of the "
        "multiply-accumulates are INT8"
    )


def mixed_words(row: Row) -> str:
    """Which layers of a mixed precision are none of INT8, and what it took to find them."""
    names = f" ({row.kept_fp32})" if row.kept_fp32 else ""
    found = counted(row.evaluations or 0, "evaluation")
    return f"mixed precision: {row.kept_layers} of {row.layers} layers in FP32{names}, {found}"


def remarks(variant: VariantEvidence) -> list[str]:
    """What must be known of a variant beyond its row, each a sentence that begins with its name."""
    row, compared = variant.row, variant.comparison
    found = [state_words(row.status, row.reason)] if row.reason else []
    if compared is not None:
        if compared.broken:
            found.append(not_to_ship(row.guardrails))
        if compared.verdict == "inconclusive":
            found.append(settle_words(compared.n, compared.clips_to_settle))
        if compared.verdict is not None and compared.verdict_holm not in (None, compared.verdict):
            found.append(f"adjusted for all variants of the study (Holm) it is {compared.verdict_holm}")
        found.extend(compared.notes)
    if row.fp32_layers:
        found.append(left_words(row))
    if row.evaluations:
        found.append(mixed_words(row))
    if variant.speed is not None and variant.speed.pays is not True and (words := pay_words(row)):
        found.append(words)
    return [f"{variant.name}: {text}" for text in dict.fromkeys([*found, *variant.notes])]


def settings_words(row: Row) -> str:
    """The settings of a trial, or of what came of one, in a line."""
    return ", ".join(f"{name} {value}" for name, value in row.chosen.items() if value not in ([], None))


def remedy_words(remedies: Mapping[str, Any]) -> str:
    """How a variant is quantized otherwise than by default, in a line; nothing where it is not."""
    forms = {
        "observer": "{} observer", "range_margin": "ranges x {:g}", "calibration_clips": "{} calibration clips",
        "rounding": "weights rounded by AdaRound, without targets",
    }  # fmt: skip
    return ", ".join(forms.get(name, name.replace("_", " ")).format(value) for name, value in remedies.items())
