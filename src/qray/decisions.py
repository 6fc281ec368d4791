"""`qray pick` and `qray diff`, behind the parsing in cli.py: answers that a script reads from the exit code."""

from __future__ import annotations

import math
from pathlib import Path

from qray.errors import NothingQualifies, Regression, UsageError


def _checked(option: str, value: float | None, *, zero: bool = False) -> None:
    if value is not None and not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise UsageError(f"{option} {value:g}: expected a number {'of 0 or more' if zero else 'over 0'}")


def pick_variant(
    out: Path, max_latency_ms: float | None, max_size_mb: float | None, max_rss_mb: float | None,
    margin: float | None, threads: int | None, batch: int | None, as_json: bool,
) -> None:  # fmt: skip
    """`qray pick`."""
    given = {"max-latency-ms": max_latency_ms, "max-size-mb": max_size_mb, "max-rss-mb": max_rss_mb, "margin": margin}
    for name, value in given.items():
        _checked(f"--{name}", value)
    from qray.answers.bounds import Bounds
    from qray.answers.pick import choose
    from qray.judge.judge import read_evidence
    from qray.words.show import results_console
    from qray.words.show_pick import choice_json, print_choice

    evidence = read_evidence(out)
    choice = choose(evidence, Bounds(max_latency_ms, max_size_mb, max_rss_mb, margin), threads, batch)
    if as_json:
        print(choice_json(choice))
    else:
        print_choice(choice, evidence.reference.name, results_console())
    if choice.picked is None:
        raise NothingQualifies(choice.why)


def diff_outs(a: Path, b: Path, tolerance: float | None, as_json: bool) -> None:
    """`qray diff`."""
    _checked("--tolerance", tolerance, zero=True)
    from qray.answers.diff import diff_runs
    from qray.judge.judge import read_evidence
    from qray.words.show import results_console
    from qray.words.show_diff import diff_json, print_diff

    found = diff_runs(read_evidence(a), read_evidence(b), tolerance)
    if as_json:
        print(diff_json(found))
    else:
        print_diff(found, results_console())
    if found.regressions:
        more = f", and {len(found.regressions) - 1} more" if len(found.regressions) > 1 else ""
        raise Regression(f"{b} is worse than {a}: {found.regressions[0]}{more}")
