"""Answers in a terminal, and as JSON: what to ship and why not the others, what changed, what holds over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from qray.answers.changes import Change
from qray.answers.diff import RunDiff, VariantDiff
from qray.answers.pick import Candidate, Choice
from qray.answers.seeds import OverSeeds, SeedEvidence
from qray.words.document import Cell, Grid, Tone
from qray.words.figures import NOT_MEASURED, in_table, marked, megabytes, number, percent
from qray.words.phrases import TONES, guardrail_words, not_to_ship, state_words
from qray.words.terminal import say, table_of, to_json


def _figures(candidate: Candidate, reference: str, choice: Choice) -> str:
    """What one variant gives and costs, in words; what is not known is left out."""
    words = []
    if candidate.faster is not None:
        words.append(f"{candidate.faster:.2f} times as fast as {choice.reference}")
    if candidate.latency_ms is not None:
        words.append(f"p50 {candidate.latency_ms:.2f} ms")
    if candidate.size_bytes is not None:
        ratio = "" if candidate.size_ratio is None else f", {percent(candidate.size_ratio)} of {reference}"
        words.append(f"{megabytes(candidate.size_bytes)} MB{ratio}")
    if candidate.rss_mb is not None:
        words.append(f"peak memory {number(candidate.rss_mb, 0)} MB")
    if candidate.mae is not None:
        delta = "" if candidate.delta is None else f", {candidate.delta:+.2f} to {reference}"
        words.append(f"MAE {number(candidate.mae)}{delta}")
    return "; ".join(words)


def _verdict(candidate: Candidate, choice: Choice) -> str:
    """The verdict and the margin that it was held against."""
    if candidate.verdict is None:
        return "no verdict"
    when = ", declared before the run" if choice.bounds.margin is None else ""
    return f"{candidate.verdict} at a margin of {choice.margin:g}{when}"


def print_choice(choice: Choice, reference: str, console: Console) -> None:
    """The one to ship first, then why not the others."""
    picked, runner_up = choice.picked, choice.runner_up
    if picked is None:
        lines = [("Nothing to ship.", "bold red"), (f"Why: {choice.why}.", "")]
    else:
        told = (
            _figures(picked, reference, choice), _verdict(picked, choice),
            f"guardrails hold: {guardrail_words(picked.guardrails)}", f"why: {choice.why}",
            f"artifact: {picked.artifact or 'not recorded'}",
        )  # fmt: skip
        lines = [(f"Ship {picked.name}", "bold green"), *((f"  {words}", "") for words in told)]
    if runner_up is not None:
        lines += [
            (f"\nRunner-up: {runner_up.name} ({choice.passed_over[runner_up.name]})", "bold"),
            (f"  {_figures(runner_up, reference, choice)}", ""),
            (f"  artifact: {runner_up.artifact or 'not recorded'}", ""),
        ]
    lines += [("\nNot these:", "")] * bool(choice.others)
    for other in choice.others:
        why_not = other.out or choice.passed_over[other.name]
        lines.append((f"  {other.name}: {why_not}", "dim" if other.out is not None else ""))
    if choice.at is not None:
        lines.append((f"\nLatency and memory at {choice.at}; intervals are 95 %.", "dim"))
    for text, tone in [*lines, *((f"Note: {note}", "unsure") for note in choice.notes)]:
        say(console, text, tone)


def choice_json(choice: Choice) -> str:
    """The choice as JSON."""

    def plain(candidate: Candidate | None, why: str | None) -> dict[str, Any] | None:
        return None if candidate is None else asdict(candidate) | {"why": why}

    return to_json({
        "out": choice.out, **{name: getattr(choice.at, name, None) for name in ("device", "threads", "batch")},
        "bounds": asdict(choice.bounds), "margin": choice.margin, "margin_declared": choice.bounds.margin is None,
        "why": choice.why, "picked": plain(choice.picked, choice.why),
        "runner_up": plain(choice.runner_up, choice.runner_up_why),
        "others": [plain(other, other.out or choice.passed_over.get(other.name)) for other in choice.others],
        "notes": list(choice.notes),
    })  # fmt: skip


def print_diff(diff: RunDiff, console: Console) -> None:
    """What changed around the runs, the variants side by side, and the regressions last, where they are read."""
    say(console, f"A: {diff.a}\nB: {diff.b}")
    for title, changes in (("Study", diff.study), ("Versions", diff.versions), ("Host", diff.host)):
        _print_changes(title, changes, console)
    say(console, "")
    header = ("variant", "status", "MAE", "B - A (95 %)", "verdict", "MB", "p50 ms")
    rows = tuple(map(_diff_row, diff.variants))
    console.print(table_of(Grid(header, rows, "Variants in A and B"), folding=range(len(header))))
    for variant in diff.variants:
        for where, words in _missing(variant):
            say(console, f"{variant.name} in {where}: {words}", "unsure")
    for note in diff.notes:
        say(console, f"Note: {note}", "dim")
    say(console, "")
    for regression in diff.regressions:
        say(console, f"Regression: {regression}", "bad")
    for unchecked in diff.unchecked:
        say(console, f"Not compared: {unchecked}", "unsure")
    if not diff.regressions:
        within = " in what could be compared" if diff.unchecked else ""
        words = f"No regression{within} (an MAE may grow by {diff.tolerance:g})."
        say(console, words, "unsure" if within else "good")


def _missing(variant: VariantDiff) -> list[tuple[str, str]]:
    """Where the variant has no result, and why; once where it is the same in both runs."""
    found = [
        (word, state_words(side.status, side.reason))
        for word, side in (("A", variant.a), ("B", variant.b))
        if side is not None and side.status != "ok"
    ]
    return [("both", found[0][1])] if len(found) == 2 and found[0][1] == found[1][1] else found


def _print_changes(title: str, changes: Sequence[Change], console: Console) -> None:
    say(console, f"\n{title}:{'' if changes else ' unchanged'}", "bold")
    for change in changes:
        if change.key == "cpu_flags":
            words = _flags(change)
        else:
            words = " -> ".join("not set" if value is None else json.dumps(value) for value in (change.a, change.b))
        say(console, f"  {change.key}: {words}")


def _flags(change: Change) -> str:
    a, b = (set(str(value or "").split()) for value in (change.a, change.b))
    return " ".join([*(f"-{flag}" for flag in sorted(a - b)), *(f"+{flag}" for flag in sorted(b - a))])


def _two(a: str, b: str) -> str:
    """A value in both runs, once where it is the same."""
    return a if a == b else f"{a} -> {b}"


def _diff_row(variant: VariantDiff) -> tuple[Cell, ...]:
    a, b, mae = variant.a, variant.b, variant.mae
    change = NOT_MEASURED if mae is None else in_table(*mae.parts, sign=True)

    def two(name: str, form: Callable[[Any], str]) -> str:
        return _two(*(form(getattr(side, name, None)) for side in (a, b)))

    ratio = f" ({number(variant.latency)}x)" if variant.latency is not None else ""
    cells = (
        variant.name, _two(a.status if a else "not in A", b.status if b else "not in B"),
        two("mae", number), change + " unpaired" * (mae is not None and not variant.paired),
        _two(variant.verdict_a or NOT_MEASURED, variant.verdict_b or NOT_MEASURED),
        two("size_bytes", megabytes), two("latency_ms", number) + ratio,
    )  # fmt: skip
    tone: Tone = "bad" if variant.regressions else "unsure" if variant.flipped else ""
    return tuple(Cell(text, tone) for text in cells)


def print_seeds(found: SeedEvidence, console: Console) -> None:
    """One line per variant, then what could not be concluded."""
    header = ("variant", "seeds", "MAE (95 %)", "Δ to fp32 (95 %)", "SD of Δ over seeds", "verdict")
    grid = Grid(header, tuple(map(_seeds_row, found.variants)), "Over seeds", frozenset(range(1, 5)))
    console.print(table_of(grid))
    seeds = ", ".join(map(str, found.seeds))
    clips = " or ".join(str(n) for n in sorted({variant.n for variant in found.variants}))
    about = f"{len(found.seeds)} seeds ({seeds}) on {clips} clips; margin {found.margin:g}"
    say(console, f"{about}; intervals over seeds and clips", "dim")
    for variant in found.variants:
        for words in variant.broken:
            say(console, f"! {variant.name}: {not_to_ship(words)}", "bad")
    for note in found.notes:
        say(console, note, "unsure")


def _seeds_row(variant: OverSeeds) -> tuple[Cell, ...]:
    cells = (
        variant.name, str(len(variant.seeds)), in_table(variant.mae, variant.mae_low, variant.mae_high),
        in_table(variant.delta, variant.delta_low, variant.delta_high, sign=True), number(variant.delta_sd),
    )  # fmt: skip
    tone = "bad" if variant.broken else TONES.get(variant.verdict, "")
    return (*map(Cell, cells), Cell(marked(variant.verdict, variant.broken), tone))
