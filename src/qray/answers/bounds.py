"""What is asked of the variant to ship, and by how much one fails it."""

from __future__ import annotations

from dataclasses import dataclass

from qray.judge.statistics import Estimate


@dataclass(frozen=True)
class Bounds:
    """What is asked of the one to ship; None is no bound. Milliseconds at the median, 10^6 bytes, target units."""

    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    max_rss_mb: float | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Failure:
    """A bound that is not met: its option, the limit, what was found, and by how much it is over (None: not known)."""

    bound: str
    limit: float
    found: float | None
    over: float | None
    words: str


def failures(
    bounds: Bounds, latency_ms: Estimate | None, size_bytes: int | None, rss_mb: float | None
) -> tuple[Failure, ...]:
    """The bounds that a variant of these figures fails; a bound on what was not measured is failed too.

    A latency must meet its bound with the upper end of its interval: under the limit by luck is not under the limit.
    """
    found = []
    if bounds.max_latency_ms is not None:
        found.append(_latency_failure(latency_ms, bounds.max_latency_ms))
    size = None if size_bytes is None else size_bytes / 1e6
    for option, limit, value, what in (
        ("--max-size-mb", bounds.max_size_mb, size, "size"),
        ("--max-rss-mb", bounds.max_rss_mb, rss_mb, "peak memory"),
    ):
        if limit is not None:
            found.append(_plain_failure(option, limit, value, "MB", what))
    return tuple(failure for failure in found if failure is not None)


def _plain_failure(option: str, limit: float, value: float | None, unit: str, what: str) -> Failure | None:
    if value is None:
        return Failure(option, limit, None, None, f"its {what} was not measured, so {option} {limit:g} cannot be shown")
    if value <= limit:
        return None
    words = f"{what} {value:.2f} {unit} is {value - limit:.2f} {unit} over {option} {limit:g}"
    return Failure(option, limit, value, value - limit, words)


def _latency_failure(latency: Estimate | None, limit: float) -> Failure | None:
    option = "--max-latency-ms"
    if latency is None or latency.value > limit:
        return _plain_failure(option, limit, None if latency is None else latency.value, "ms", "latency")
    if latency.high is None or latency.high <= limit:
        return None
    words = (
        f"latency {latency.value:.2f} ms is under {option} {limit:g}, but its interval reaches {latency.high:.2f} ms"
    )
    return Failure(option, limit, latency.high, latency.high - limit, words)
