"""What of JSON is read: files that others may have written, of which any may be no file, no JSON, or without end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

#: More than the probes of a million clips.
MAX_BYTES = 2**30


def read_json(path: Path) -> Any:
    """The value that a file holds.

    Raises:
        FileNotFoundError: there is none. OSError: it cannot be read. ValueError: it is no regular file (a pipe would be
            waited for), too large, nested too deep, or not the JSON that qray writes, which has no NaN.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("not a file")
    if size > MAX_BYTES:
        raise ValueError(f"{size / 2**30:.0f} GiB, of which qray reads at most {MAX_BYTES / 2**30:.0f}")
    try:
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
