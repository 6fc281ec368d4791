"""Figures as a reader sees them; a figure that was not measured is a dash."""

from __future__ import annotations

import math

NOT_MEASURED = "–"


def known(value: float | None) -> bool:
    """Whether there is a figure at all."""
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """1.23 with its unit."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    # -0.00 is no figure.
    return f"{round(value, digits) + 0.0:.{digits}f}{unit}"


def signed(value: float | None, digits: int = 2) -> str:
    """+1.23 or -1.23."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def spread(low: float | None, high: float | None, digits: int = 2, sign: bool = False) -> str:
    """(low to high), or nothing where there is no interval."""
    if low is None or high is None:
        return ""
    form = signed if sign else number
    return f"({form(low, digits)} to {form(high, digits)})"


def with_interval(value: float | None, low: float | None, high: float | None, sign: bool = False) -> str:
    """A figure and its interval."""
    return f"{(signed if sign else number)(value)} {spread(low, high, sign=sign)}".strip()


def percent(share: float | None, digits: int = 0) -> str:
    """12%."""
    return NOT_MEASURED if share is None or not math.isfinite(share) else f"{share:.{digits}%}"


def yes_no(value: bool | None) -> str:
    """yes, no, or nothing known."""
    return NOT_MEASURED if value is None else "yes" if value else "no"


def megabytes(size_bytes: float | None) -> str:
    """Bytes as MB (10^6)."""
    return NOT_MEASURED if size_bytes is None else f"{size_bytes / 1e6:.2f}"


def listed(words: list[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
