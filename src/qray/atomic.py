"""Files and folders that appear complete or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Loading an artifact needs this file, and is not to cost Arrow's 35 MB.
    import pyarrow as pa

#: How names begin of what is not whole yet, and of what is no more.
UNFINISHED, REPLACED = ".tmp-", ".old-"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what the caller wrote there (a file or a folder) replaces `path`.

    Nothing is left behind when the caller raises. A folder that is already at `path` is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, because writers such as PyAV and torch choose their format by it.
    temporary = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        if temporary.is_dir():
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            if path.exists():
                doomed = path.with_name(f"{REPLACED}{uuid.uuid4().hex[:8]}-{path.name}")
                path.rename(doomed)
                temporary.rename(path)
                shutil.rmtree(doomed)
            else:
                temporary.rename(path)
        else:
            _sync(temporary)
            temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        # The system does not say it of a disk that is full.
        error.filename = error.filename or str(path)
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed left in a folder and below; nobody else may be writing there."""
    for begun in (*folder.rglob(f"{UNFINISHED}*"), *folder.rglob(f"{REPLACED}*")):
        if begun.is_dir():
            shutil.rmtree(begun, ignore_errors=True)
        else:
            begun.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. NaN is refused: a figure that was not measured is null."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write an Arrow table as Parquet atomically."""
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
