"""Which form where: the variant to ship on each device, side by side."""

from __future__ import annotations

from qray.answers.pick import choose
from qray.errors import QrayError
from qray.judge.evidence import Evidence
from qray.judge.row import Row
from qray.judge.statistics import Estimate
from qray.report.headline import own_paths
from qray.words.document import Block, Cell, Grid, Paragraph
from qray.words.figures import NOT_MEASURED, estimate, number

CARRIED = ("variant", "device", "p50 ms", "speed of the fastest FP32 there (95 %)", "Δ to FP32 (95 %)", "RSS MB",
           "RMS to where it was built", "cold start s", "slower after minutes", "verdict")  # fmt: skip
HEADER = ("device", "to ship", "p50 ms", "speed-up there (95 %)", "Δ to FP32 (95 %)", "why", "measured on")


def devices(evidence: Evidence) -> list[Block]:
    """A line for each device, of what `qray pick` names there without bounds; nothing where there is one device."""
    if len(evidence.devices) < 2:
        return []
    rows = [_line(evidence, device) for device in evidence.devices]
    words = "Speed is compared with FP32 eager of the same device; errors with FP32 on the CPU, clip by clip."
    grid = Grid(HEADER, tuple(rows), "Which form where", frozenset({2, 3, 4}))
    if not evidence.elsewhere:
        return [Paragraph(words), grid]
    carried = tuple(_carried(row) for variant in evidence.elsewhere for row in variant.rows)
    said = (
        "Other devices were measured with kits, which hold VAL clips: their errors are compared with FP32's on those. "
        "What to ship there is decided by the errors on TEST, and by their own speed. The last columns say how far "
        "predictions are from those of where the artifact was built, how long a fresh process takes to its first, and "
        "by how much minutes of work make it slower."
    )
    numeric = frozenset(range(2, len(CARRIED) - 1))
    return [Paragraph(words), grid, Paragraph(said), Grid(CARRIED, carried, "Measured with kits", numeric)]


def _line(evidence: Evidence, device: str) -> tuple[Cell, ...]:
    unknown = Cell(NOT_MEASURED)
    try:
        choice = choose(evidence, device=device)
    except QrayError:
        there = [v for v in (*evidence.variants, *evidence.elsewhere) if v.device == device]
        reasons = dict.fromkeys(v.row.reason for v in there if v.row.reason)
        said = "; ".join(filter(None, reasons)) or "nothing was measured there"
        return Cell(device), Cell("not known", "dim"), unknown, unknown, unknown, Cell(said), unknown
    judged = (*evidence.variants, *evidence.elsewhere)
    rows = [row for variant in judged for row in variant.rows if row.point == choice.at]
    where, host = Cell(str(choice.at)), Cell(next((row.host for row in rows if row.host), NOT_MEASURED))
    picked = choice.picked
    why = Cell(own_paths(evidence, choice.why))
    if picked is None:
        return where, Cell("none", "bad"), unknown, unknown, unknown, why, host
    delta = unknown if picked.delta is None else estimate(*picked.delta.parts, sign=True)
    figures = _figure(picked.latency_ms), _figure(picked.faster), delta
    return where, Cell(picked.name, "good"), *figures, why, host


def _carried(row: Row) -> tuple[Cell, ...]:
    ratio = estimate(row.speedup_best_fp32, row.speedup_best_fp32_low, row.speedup_best_fp32_high)
    delta = estimate(row.delta_mae, row.delta_low, row.delta_high, sign=True)
    latency, rss = row.latency_p50_ms, row.peak_rss_mb
    figures = [Cell(number(latency), order=latency), ratio, delta, Cell(number(rss, 0), order=rss)]
    figures += [Cell(number(value), order=value) for value in (row.device_rms, row.cold_start_s, row.sustained_ratio)]
    said = row.reason or row.verdict or NOT_MEASURED
    return Cell(row.variant), Cell(str(row.point or row.device)), *figures, Cell(said)


def _figure(found: Estimate | None) -> Cell:
    return Cell(NOT_MEASURED) if found is None else estimate(*found.parts)
