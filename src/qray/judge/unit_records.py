"""Records of finished units in OUT, read with tolerance: half a record, or one just replaced, is as good as none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def unit_files(out: Path, kind: str = "*") -> list[Path]:
    """Files of the records of one kind, or of all, by name; temporary ones left out."""
    return sorted((out / "units").glob("[!.]*-*.json" if kind == "*" else f"{kind}-*.json"))


def read_record(path: Path) -> dict[str, Any] | None:
    """A record, or None where the file cannot be read as one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def began(record: dict[str, Any], path: Path) -> float:
    """When a unit's work began, epoch seconds; a record without a time of its own was written when its work ended."""
    return float(record.get("started", path.stat().st_mtime))
