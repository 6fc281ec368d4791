"""What a service would see: cold starts, and streams at once under a bound of the study."""

from __future__ import annotations

from collections.abc import Mapping

from qray.judge.evidence import Evidence
from qray.judge.row import Row
from qray.measure.serving import WITHIN, Served, Streams
from qray.words.document import Block, Cell, Grid, Paragraph
from qray.words.figures import NOT_MEASURED, number


def service(evidence: Evidence) -> list[Block]:
    """A line for each variant and point where streams were measured; nothing where none were."""
    rows = [(row, served) for variant in evidence.variants for row in variant.rows
            if row.point is not None and (served := variant.outcome.served.get(row.point)) is not None]  # fmt: skip
    settings, counts = evidence.study.measure.serving, sorted({s.streams for _, served in rows for s in served.streams})
    if settings is None or not counts:
        return []
    words = (
        "A stream is a process that asks for its next prediction when it has the one before; all share the cores of "
        "the machine. A cold start is the time from the start of a process to its first prediction, engine and all. Of "
        f"the numbers of streams that keep {WITHIN} % of all calls within {settings.bound_ms:g} ms the last column "
        "names the one that predicts the most clips a second."
    )
    each = tuple(f"{count} at once: clips/s (p{WITHIN} ms)" for count in counts)
    header = ("variant", "where", "cold start s", *each, f"most within {settings.bound_ms:g} ms")
    lines = tuple(_line(row, served, counts, settings.bound_ms) for row, served in rows)
    return [Paragraph(words), Grid(header, lines, "As a service", frozenset(range(2, len(header) - 1)))]


def _line(row: Row, served: Served, counts: list[int], bound_ms: float) -> tuple[Cell, ...]:
    found: Mapping[int, Streams] = {streams.streams: streams for streams in served.streams}
    best = served.within(bound_ms)
    cold = Cell(number(served.cold_start_s), order=served.cold_start_s)
    figures = (_streams(found.get(count)) for count in counts)
    said = "none" if best is None else f"{best.streams} at once"
    return Cell(row.variant), Cell(str(row.point)), cold, *figures, Cell(said if served.streams else NOT_MEASURED)


def _streams(found: Streams | None) -> Cell:
    if found is None:
        return Cell(NOT_MEASURED)
    return Cell(f"{number(found.clips_s, 0)} ({number(found.p95_ms, 1)})", order=found.clips_s)
