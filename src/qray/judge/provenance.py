"""Who made a figure: host, instruction sets and versions, as the unit that made it recorded them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FIELDS = ("versions", "host", "cpu_flags")


@dataclass(frozen=True)
class Provenance:
    """What a unit's record says of where it ran; None where it does not say."""

    versions: Mapping[str, str] | None = None
    host: str | None = None
    cpu_flags: str | None = None


def provenance_of(record: Mapping[str, Any] | None) -> Provenance:
    """The provenance that a record holds."""
    return Provenance(**{name: (record or {}).get(name) or None for name in FIELDS})


def provenance_columns(made: Mapping[str, Provenance]) -> dict[str, Any]:
    """Columns of a row whose figures were made by several units: `made`, by what they did, in the order of the work.

    versions: of the build. host and cpu_flags: of the measurement where there is one ("latency"), else of the build.
    Without a build: of the last unit that says. made_elsewhere: JSON, {unit: {column: its own value}} of the units that
    differ from the row's columns; null where none does.
    """
    place = "latency" if "latency" in made else "build"
    row = {
        "versions": _of(made, "build", "versions"), "host": _of(made, place, "host"),
        "cpu_flags": _of(made, place, "cpu_flags"),
    }  # fmt: skip
    others: dict[str, dict[str, Any]] = {}
    for unit, own in made.items():
        differs = {name: v for name in FIELDS if (v := getattr(own, name)) is not None and v != row[name]}
        if differs:
            others[unit] = differs
    versions = row["versions"]
    return row | {
        "versions": json.dumps(dict(versions), sort_keys=True) if versions is not None else None,
        "made_elsewhere": json.dumps(others, sort_keys=True) if others else None,
    }


def _of(made: Mapping[str, Provenance], unit: str, name: str) -> Any:
    """A field as the given unit has it, else as the last unit has it that has one."""
    places = [*made.values(), *([made[unit]] if unit in made else [])]
    return next((value for place in reversed(places) if (value := getattr(place, name)) is not None), None)
