"""The choice of a variant in a terminal, and as JSON: what to ship, why, and why not the others."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console

from qray.answers.pick import Candidate, Choice
from qray.judge.guardrails import figures as guardrail_figures
from qray.judge.pairwise import Estimate, point


def span(estimate: Estimate, digits: int = 2, *, signed: bool = False) -> str:
    """A figure with its interval: "1.50 (1.48 to 1.53)"; without one it stands alone."""
    form = f"{'+' if signed else ''}.{digits}f"
    if estimate.low is None or estimate.high is None:
        return format(estimate.value, form)
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def figures(candidate: Candidate, reference: str) -> str:
    """What one variant gives and costs, in words; what is not known is left out."""
    words = []
    if candidate.faster is not None:
        fold = candidate.faster
        words.append(f"{span(fold)} times as fast as {reference}")
    if candidate.latency_ms is not None:
        words.append(f"p50 {span(candidate.latency_ms)} ms")
    if candidate.size_bytes is not None:
        ratio = "" if candidate.size_ratio is None else f", {candidate.size_ratio:.0%} of {reference}"
        words.append(f"{candidate.size_bytes / 1e6:.2f} MB{ratio}")
    if candidate.rss_mb is not None:
        words.append(f"peak memory {candidate.rss_mb:.0f} MB")
    if candidate.mae is not None:
        delta = "" if candidate.delta is None else f", {span(candidate.delta, signed=True)} to {reference}"
        words.append(f"MAE {candidate.mae:.2f}{delta}")
    return "; ".join(words)


def verdict_words(candidate: Candidate, choice: Choice) -> str:
    """The verdict and the margin that it was held against."""
    if candidate.verdict is None:
        return "no verdict"
    margin = "" if choice.margin is None else f" at a margin of {choice.margin:g}"
    when = ", declared before the run" if choice.bounds.margin is None else ""
    return f"{candidate.verdict}{margin}{when}"


def print_choice(choice: Choice, reference: str, console: Console) -> None:
    """The one to ship first, then why not the others."""

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False)

    if choice.picked is None:
        say("Nothing to ship.", "bold red")
        say(f"Why: {choice.why}.")
    else:
        say(f"Ship {choice.picked.name}", "bold green")
        say(f"  {figures(choice.picked, reference)}")
        say(f"  {verdict_words(choice.picked, choice)}")
        say(f"  guardrails hold: {guardrail_figures(choice.picked.guardrails)}")
        say(f"  why: {choice.why}")
        say(f"  artifact: {choice.picked.artifact or 'not recorded'}")
        if choice.runner_up is not None:
            say(f"\nRunner-up: {choice.runner_up.name} ({choice.passed_over[choice.runner_up.name]})", "bold")
            say(f"  {figures(choice.runner_up, reference)}")
            say(f"  artifact: {choice.runner_up.artifact or 'not recorded'}")
    if choice.others:
        say("\nNot these:")
    for other in choice.others:
        say(f"  {other.name}: {other.out or choice.passed_over[other.name]}", "" if other.out is None else "dim")
    if choice.at is not None:
        say(f"\nLatency and memory at {point(choice.at)}; intervals are 95 %.", "dim")
    for note in choice.notes:
        say(f"Note: {note}", "yellow")


def choice_json(choice: Choice) -> str:
    """The choice as JSON; null for what is not known."""

    def plain(candidate: Candidate | None, why: str | None = None) -> dict[str, Any] | None:
        if candidate is None:
            return None
        artifact = None if candidate.artifact is None else str(candidate.artifact)
        return asdict(candidate) | {"artifact": artifact, "why": why}

    content = {
        "out": str(choice.out), "threads": choice.at and choice.at[0], "batch": choice.at and choice.at[1],
        "bounds": asdict(choice.bounds), "margin": choice.margin, "margin_declared": choice.bounds.margin is None,
        "why": choice.why, "picked": plain(choice.picked, choice.why),
        "runner_up": plain(choice.runner_up, choice.runner_up_why),
        "others": [plain(other, other.out or choice.passed_over.get(other.name)) for other in choice.others],
        "notes": list(choice.notes),
    }  # fmt: skip
    return json.dumps(content, indent=1, allow_nan=False)
