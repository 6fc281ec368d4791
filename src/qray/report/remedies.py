"""Which remedy gave how much: variants that differ in how they were quantized and in nothing else, against the plain
one."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from qray.judge.evidence import Evidence
from qray.judge.pairwise import Pairs
from qray.judge.statistics import Estimate
from qray.study import Variant
from qray.words.document import Block, Cell, Paragraph, figures_grid
from qray.words.figures import NOT_MEASURED, estimate, number, share
from qray.words.phrases import mixed_words, remedy_words

HEADER = ("variant", "remedy", "MAE", "Δ to FP32 (95 %)", "given back (95 %)", "INT8")


def remedies(evidence: Evidence) -> list[Block]:
    """A table for each method, engine and weight width of which there is a plain variant and others; else nothing."""
    groups: dict[Any, list[Variant]] = defaultdict(list)
    for variant in evidence.study.variants:
        on = variant.device, variant.cuda_graph
        groups[variant.method, variant.engine, variant.weight_bits, variant.keep_fp32, on].append(variant)
    pairs, blocks = Pairs(evidence, None), list[Block]()
    for (method, engine, bits, *_), variants in groups.items():
        plain = next((variant for variant in variants if not (variant.remedies or variant.accuracy)), None)
        if plain is None or len(variants) == 1:
            continue
        rows = []
        for variant in variants:
            row = pairs.row(variant.name)
            found = [remedy_words(variant.remedies), mixed_words(row) if row.evaluations else ""]
            said = ", ".join(filter(None, found)) or "none"
            rows.append((
                Cell(variant.name), Cell(said if row.status == "ok" else f"{said}: {row.status}"),
                Cell(number(row.mae), order=row.mae), estimate(row.delta_mae, row.delta_low, row.delta_high, sign=True),
                _gained(pairs.error(plain.name, variant.name) if variant is not plain else None),
                share(row.int8_mac_share),
            ))  # fmt: skip
        label = f"Remedies of {method} on {engine}, {bits}-bit weights"
        blocks.append(figures_grid(HEADER, rows, label))
    if blocks:
        words = "How much of the MAE each gives back of what the plain variant has lost, on the same clips."
        blocks.insert(0, Paragraph(f"{words} More than 0 is better."))
    return blocks


def _gained(found: Estimate | None) -> Cell:
    return estimate(*found.parts, sign=True) if found is not None else Cell(NOT_MEASURED)
