"""A run as names and values, which is what a tracker takes: parameters, tags and metrics of rows and study."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime

from qray.answers.changes import flat
from qray.escape import markdown
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.row import COLUMNS, Row
from qray.words.figures import number
from qray.words.phrases import not_to_ship

#: Columns that say which row it is. They are fixed by the digest, as parameters in MLflow have to be.
PARAMS = tuple(name for name, column in COLUMNS.items() if column.names_row)


def digest(evidence: Evidence) -> str:
    """Digest of the study and of the keys of all rows: what makes two OUTs the same run on the same host."""
    keys = sorted({str(row.key) for row in evidence.rows})
    study = evidence.study.canonical()
    text = json.dumps({"study": study, "keys": keys}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def point(row: Row) -> str:
    return "" if row.point is None else " ".join(f"{name}={value}" for name, value in row.point.depends().items())


def time_ms(row: Row) -> int:
    created = row.created_at
    return int(1000 * created.replace(tzinfo=UTC).timestamp()) if isinstance(created, datetime) else 0


def latency_host(rows: Sequence[Row]) -> str:
    """Where latencies were measured: the same study on two hosts is two runs."""
    return next((str(row.host) for row in rows if row.latency_p50_ms is not None and row.host), "")


def metrics(row: Row) -> dict[str, float]:
    """The figures of a row, by their columns' names. What was not measured is left out."""
    numbers = {k: v for k, v in vars(row).items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {k: float(v) for k, v in numbers.items() if k not in PARAMS and math.isfinite(v)}


def row_tags(row: Row) -> dict[str, str]:
    """The words of a row; an empty one takes back what an earlier table said."""
    tags = {}
    for name, value in vars(row).items():
        if name in PARAMS or name == "versions":
            continue
        if isinstance(value, str | bool):
            tags[name] = str(value)
        elif value is None and COLUMNS[name].clears:
            tags[name] = ""
    return tags


def study_params(evidence: Evidence) -> dict[str, str]:
    """The study, flat: dotted keys, its variants by name rather than by number."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat(evidence.study).items()}


def note(evidence: Evidence) -> str:
    """What MLflow shows above the run, as Markdown: a verdict per variant, and what the run cannot carry."""

    reference = evidence.reference.name

    def line(variant: VariantEvidence) -> str:
        row = variant.row
        error = "" if row.mae is None else f", MAE {number(row.mae)}"
        word = row.verdict or (row.status if row.status != "ok" else "no verdict")
        out = f"; {markdown(not_to_ship(row.guardrails))}" if row.guardrails else ""
        return f"- {markdown(variant.name)}: {'reference' if variant.name == reference else word}{error}{out}"

    return "\n".join([*map(line, evidence.variants), "", *map(markdown, evidence.notes)]).strip()
