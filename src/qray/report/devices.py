"""Which form where: the variant to ship on each device, side by side."""

from __future__ import annotations

from qray.answers.pick import choose
from qray.errors import QrayError
from qray.judge.evidence import Evidence
from qray.judge.statistics import Estimate
from qray.words.document import Block, Cell, Grid, Paragraph
from qray.words.figures import NOT_MEASURED, estimate

HEADER = ("device", "to ship", "p50 ms", "speed-up there (95 %)", "Δ to FP32 (95 %)", "why", "measured on")


def devices(evidence: Evidence) -> list[Block]:
    """A line for each device, of what `qray pick` names there without bounds; nothing where there is one device."""
    if len(evidence.devices) < 2:
        return []
    rows = [_line(evidence, device) for device in evidence.devices]
    words = "Speed is compared with FP32 eager of the same device; errors with FP32 on the CPU, clip by clip."
    return [Paragraph(words), Grid(HEADER, tuple(rows), "Which form where", frozenset({2, 3, 4}))]


def _line(evidence: Evidence, device: str) -> tuple[Cell, ...]:
    unknown = Cell(NOT_MEASURED)
    try:
        choice = choose(evidence, device=device)
    except QrayError:
        reasons = dict.fromkeys(v.row.reason for v in evidence.variants if v.device == device and v.row.reason)
        said = "; ".join(filter(None, reasons)) or "nothing was measured there"
        return Cell(device), Cell("not known", "dim"), unknown, unknown, unknown, Cell(said), unknown
    rows = [row for variant in evidence.variants for row in variant.rows if row.point == choice.at]
    where, host = Cell(str(choice.at)), Cell(next((row.host for row in rows if row.host), NOT_MEASURED))
    picked = choice.picked
    if picked is None:
        return where, Cell("none", "bad"), unknown, unknown, unknown, Cell(choice.why), host
    delta = unknown if picked.delta is None else estimate(*picked.delta.parts, sign=True)
    figures = _figure(picked.latency_ms), _figure(picked.faster), delta
    return where, Cell(picked.name, "good"), *figures, Cell(choice.why), host


def _figure(found: Estimate | None) -> Cell:
    return Cell(NOT_MEASURED) if found is None else estimate(*found.parts)
