"""What changed around two runs: the keys of their studies, the versions, and the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qray.judge.evidence import Evidence
from qray.study import Study


@dataclass(frozen=True)
class Change:
    """A key with its value in A and in B; None where a run does not have it."""

    key: str
    a: Any
    b: Any


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Change, ...]:
    """Keys whose values differ."""
    return tuple(Change(key, a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key))


def flat(study: Study) -> dict[str, Any]:
    """Dotted keys of a study; variants by their names, so that one added in between shifts no other."""
    return dict(_walk(study.canonical(), ""))


def _walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _walk(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list) and node and all(isinstance(item, Mapping) and "name" in item for item in node):
        for item in node:
            yield from _walk({k: v for k, v in item.items() if k != "name"}, f"{path}.{item['name']}")
    else:
        yield path, node


def versions_of(evidence: Evidence) -> dict[str, str]:
    """Versions of the packages that the variants were built with; several where they differ."""
    found: dict[str, set[str]] = {}
    for variant in evidence.variants:
        for package, version in variant.row.packages.items():
            found.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(versions)) for package, versions in found.items()}


def hosts_of(evidence: Evidence) -> dict[str, str]:
    """Host, CPU flags and device of the rows that hold a latency; where there are none, of all rows."""
    rows = [row for variant in evidence.variants for row in variant.rows]
    rows = [row for row in rows if row.latency_p50_ms is not None] or rows
    found = {key: sorted({str(value) for row in rows if (value := getattr(row, key)) is not None})
             for key in ("host", "cpu_flags", "device")}  # fmt: skip
    return {key: "; ".join(values) for key, values in found.items() if values}
