"""The verdict in words: what to ship and why, what comes next, and how to read the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qray.answers.pick import Candidate, Choice, choose
from qray.errors import QrayError
from qray.judge.evidence import Evidence, VariantEvidence
from qray.words.document import Headline
from qray.words.figures import capital, listed, megabytes, number, percent, spread, with_interval
from qray.words.phrases import NOT_TO_SHIP, guardrail_words, verdict_word

#: Size ratios that have a word, within a tenth of themselves.
SHARES = ((1 / 2, "half its size"), (1 / 3, "a third of its size"), (1 / 4, "a quarter of its size"))


def choice_of(evidence: Evidence) -> Choice | None:
    """What `qray pick` names without bounds; None where it cannot even be asked."""
    try:
        return choose(evidence)
    except QrayError:
        return None


def headline(evidence: Evidence, choice: Choice | None) -> Headline:
    """The verdict first: one to ship, or that there is none and why."""
    if choice is None:
        return Headline("No verdict", ("This run cannot be judged; the notes below say why.",), "unsure")
    picked = choice.picked
    judged = [v for v in evidence.variants if v.verdict is not None]
    counted = _counted(evidence, judged)
    if picked is None:
        title = "Ship none of these variants" if judged else "No verdict: this run cannot name one to ship"
        return Headline(title, (_sentence(own_paths(evidence, choice.why)), *counted), "bad" if judged else "unsure")
    where = f"; it is in `{own_paths(evidence, str(picked.artifact))}`" if picked.artifact is not None else ""
    said = [_case(evidence, picked, choice.margin), f"Chosen as {choice.why.removesuffix('.')}{where}."]
    if picked.guardrails:
        said.append(f"No guardrail is broken: {guardrail_words(picked.guardrails)}.")
    if choice.runner_up is not None:
        reason = choice.passed_over.get(choice.runner_up.name, "").removeprefix("qualifies; ")
        said.append(f"Runner-up: {choice.runner_up.name}" + (f", which {_against(reason)}." if reason else "."))
    elif len(judged) > 1:
        said.append("No other variant qualifies.")
    return Headline(f"Ship {picked.name}", (*said, *counted), "good")


def _against(reason: str) -> str:
    """ "takes 1.4x the time of X, 1.7x its size, MAE -0.08 (...)" as a clause that can stand after "which"."""
    return reason if reason.startswith("takes") else f"compares so: {reason}"


def _sentence(text: str) -> str:
    return f"{capital(text.strip().removesuffix('.'))}." if text.strip() else ""


def own_paths(evidence: Evidence, text: str) -> str:
    """Paths inside OUT as seen from it, so that the report of a copied OUT is the same."""
    return text.replace(f"{evidence.out}/", "")


def _case(evidence: Evidence, picked: Candidate, margin: float) -> str:
    """The claim and the figures that carry it."""
    parts = []
    if (ratio := picked.faster) is not None:
        words = "the speed of" if ratio.value < 1 else "faster than"
        parts.append(f"{number(ratio.value)}x {words} FP32 eager {spread(ratio.low, ratio.high)}".strip())
    elif picked.latency_ms is not None:
        parts.append(f"{number(picked.latency_ms.value)} ms per call")
    if (share := picked.size_ratio) is not None:
        word = next((w for known, w in SHARES if abs(share - known) <= known / 10), f"{percent(share)} of its size")
        parts.append(f"{word} ({megabytes(picked.size_bytes)} MB)")
    reference = evidence.reference.accuracy
    against = f" against {number(reference.mae)}" if reference is not None else ""
    error = f"MAE {number(picked.mae)}{against}"
    if picked.delta is not None:
        error += f", difference {with_interval(*picked.delta.parts, sign=True, lead='95 % ')}, within the margin of "
        error += f"{margin:g} declared before the run"
    return _sentence("; ".join(filter(None, (", ".join(parts), error))))


def _counted(evidence: Evidence, judged: Sequence[VariantEvidence]) -> list[str]:
    """How the other variants came out, in a line."""
    words = Counter(verdict_word(v) for v in judged)
    words.update(v.row.status for v in evidence.variants if v.row.status != "ok")
    order = ("non-inferior", NOT_TO_SHIP, "inconclusive", "inferior", "skipped", "failed")
    parts = [f"{words[word]} {word}" for word in order if words[word]]
    return [f"Besides FP32: {listed(parts)}."] if parts else []


def verdict_key(evidence: Evidence) -> str:
    """The verdict words in a sentence or two."""
    margin = evidence.study.verdict.margin
    return (
        f"Non-inferior: the whole interval of the difference to FP32 lies under the margin of {margin:g}. Inferior: it "
        "lies over it. Inconclusive: it holds the margin, so that these clips cannot tell. Not to be shipped: a "
        "guardrail is broken, whatever the mean says."
    )


def how_to_read(evidence: Evidence) -> list[str]:
    """What the verdict words, the margin and the intervals mean."""
    verdict = evidence.study.verdict
    return [
        "MAE is the mean absolute error on TEST, in the units of the target; every variant predicted the same clips.",
        "Figures in brackets are 95 % intervals. For differences they are paired: what makes a clip hard for both "
        "models cancels.",
        f"The margin ({verdict.margin:g}) is the loss of MAE that is put up with. It is part of the study, so it was "
        "declared before the run.",
        "Equivalent: the difference is shown to lie within the margin on both sides (TOST at 0.05), which "
        "non-inferior does not claim: a variant may be better by more than the margin.",
        "Guardrails hold what a mean hides: each class that the thresholds make, moves that sit in one place, the "
        "share of clips that move and their tail, and an output that saturates where FP32's goes on.",
        f"Moved: the share of clips whose prediction is more than {verdict.moved:g} away from FP32's, whether better "
        "or worse.",
        "Speed-ups compare latencies that were taken interleaved, in the same run on the same host; they are the "
        "product of what the engine gives in FP32 and what fewer bits give on it.",
        "A variant is off the Pareto front only if another is at least as good in error, latency and size, and better "
        "in one with the intervals separated.",
    ]
