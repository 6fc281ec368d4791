"""Figures as a reader sees them; a figure that was not measured is a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qray.judge.row import COLUMNS, Row
from qray.judge.statistics import Estimate
from qray.words.document import Cell

NOT_MEASURED = "–"
#: Beside a verdict: a guardrail is broken, and a line below the table says which.
BROKEN = " !"


def number(value: float | None, digits: int = 2, unit: str = "", sign: bool = False) -> str:
    """1.23 with its unit; with `sign`, +1.23."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    # -0.00 is no figure.
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}{unit}"


def signed(value: float | None, digits: int = 2) -> str:
    """+1.23 or -1.23."""
    return number(value, digits, sign=True)


def spread(low: float | None, high: float | None, digits: int = 2, sign: bool = False, lead: str = "") -> str:
    """(low to high), with `lead` before them, or nothing where there is no interval."""
    if low is None or high is None:
        return ""
    return f"({lead}{number(low, digits, sign=sign)} to {number(high, digits, sign=sign)})"


def with_interval(
    value: float | None, low: float | None, high: float | None, digits: int = 2, sign: bool = False, lead: str = ""
) -> str:
    """A figure and its interval in a sentence: 1.23 (1.20 to 1.30)."""
    return f"{number(value, digits, sign=sign)} {spread(low, high, digits, sign, lead)}".rstrip()


def in_table(value: float | None, low: float | None, high: float | None, sign: bool = False, unit: str = "") -> str:
    """A figure and its interval in a terminal's table: 1.23 (1.20, 1.30)."""
    bounds = "" if low is None or high is None else f" ({number(low, sign=sign)}, {number(high, sign=sign)})"
    return number(value, unit=unit, sign=sign) + bounds


def fold(of: Estimate) -> str:
    """A ratio of latencies: 1.50x (1.40, 1.61)."""
    return in_table(*of.parts, unit="x")


def percent(share: float | None, digits: int = 0) -> str:
    """12%."""
    return NOT_MEASURED if share is None or not math.isfinite(share) else f"{share:.{digits}%}"


def percents(low: float | None, high: float | None) -> str:
    """(1.2% to 3.4%)."""
    return f"({percent(low, 1)} to {percent(high, 1)})"


def yes_no(value: bool | None) -> str:
    """yes, no, or nothing known."""
    return NOT_MEASURED if value is None else "yes" if value else "no"


def megabytes(size_bytes: float | None) -> str:
    """Bytes as MB (10^6)."""
    return NOT_MEASURED if size_bytes is None else f"{size_bytes / 1e6:.2f}"


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def counted(n: int, what: str) -> str:
    """1 clip, 2 clips."""
    return f"{n} {what}{'s' * (n != 1)}"


def capital(text: str) -> str:
    """With a capital letter."""
    return f"{text[:1].upper()}{text[1:]}"


def marked(verdict: str | None, broken: object) -> str:
    """A verdict in a table, marked where a guardrail is broken."""
    return f"{verdict or NOT_MEASURED}{BROKEN if broken else ''}"


def figure(value: float | None, digits: int = 2, sign: bool = False) -> Cell:
    """A figure as a cell of a table that can be sorted."""
    return Cell(number(value, digits, sign=sign), order=value)


def estimate(value: float | None, low: float | None, high: float | None, digits: int = 2, sign: bool = False) -> Cell:
    """A figure with its interval, likewise."""
    return Cell(with_interval(value, low, high, digits, sign), order=value)


def share(value: float | None, digits: int = 0) -> Cell:
    """A share, likewise."""
    return Cell(percent(value, digits), order=value)


def cell(row: Row, name: str) -> str:
    """A column of a row as tables show it."""
    value = getattr(row, name)
    match COLUMNS[name].form:
        case "difference":
            # Where there is no verdict on it, none is to be read from it.
            known = value is not None and row.verdict is not None
            return in_table(value, row.delta_low, row.delta_high, sign=True) if known else NOT_MEASURED
        case "verdict":
            return marked(row.verdict, row.guardrails)
        case "causes":
            parts = (row.speedup_engine, row.speedup_precision)
            return NOT_MEASURED if None in parts else " × ".join(map(number, parts))
        case "megabytes":
            return megabytes(value)
        case "fold":
            return number(value, unit="x")
        case "whole":
            return number(value, 0)
        case "percent":
            return percent(value)
        case "tenths":
            return percent(value, 1)
        case "yes_no":
            return yes_no(value)
    return number(value) if isinstance(value, float) or value is None else str(value)
