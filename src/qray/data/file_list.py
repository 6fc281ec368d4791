"""The CSV that lists the clips -> its rows with their line numbers, or a plain sentence about why it is no list."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qray.errors import QrayError, UsageError
from qray.study import Data

#: Separators that spreadsheets write in place of the comma.
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class Row:
    """The cells of one row that the study names; split is "" where there is none. problem: why it cannot be read."""

    line: int  # of the file, the header's is 1
    file: str
    target: str
    split: str
    problem: str = ""


def _text(path: Path) -> str:
    if not path.parent.is_dir():
        raise QrayError(f"{path.parent}: no such folder; name the data set's folder with --data")
    if not path.is_file():
        raise QrayError(
            f"{path}: no such file; a data set needs this list of clips (another name: data.file_list in the study)"
        )
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise QrayError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise QrayError(f"{path}, line {line}: not UTF-8 text ({error.reason}); save the list as UTF-8") from None


def _records(text: str) -> Iterator[tuple[int, list[str] | None]]:
    """(line, cells) of each record. Where quotation marks do not match, each line is read alone: None if it is bad.

    Read otherwise, one missing quotation mark would swallow all rows that follow it.
    """
    try:
        reader, records, line = csv.reader(io.StringIO(text, newline=""), strict=True), [], 1
        for cells in reader:
            records.append((line, cells))
            line = reader.line_num + 1
    except csv.Error:
        for line, single in enumerate(io.StringIO(text, newline=None), start=1):
            try:
                yield line, next(csv.reader([single], strict=True), [])
            except csv.Error:
                yield line, None
    else:
        yield from records


def _columns(path: Path, header: list[str], data: Data) -> tuple[int, int, int | None]:
    names = [name.strip() for name in header]
    wanted = {"file_column": data.file_column, "target_column": data.target_column}
    if data.split_column in names:
        wanted["split_column"] = str(data.split_column)
    for key, column in wanted.items():
        if column in names:
            if names.count(column) > 1:
                raise UsageError(f"{path}, line 1: {names.count(column)} columns are called {column!r} (data.{key})")
            continue
        for separator, called in OTHER_SEPARATORS.items():
            if column in [name.strip(" \"'") for name in separator.join(header).split(separator)]:
                raise UsageError(f"{path}, line 1: cells are separated by {called}; save the list with commas")
        raise UsageError(
            f"{path}, line 1: no column {column!r} (data.{key}); the columns named there are {', '.join(names)}. "
            f"Name the right one with --set data.{key}=..., or add a header line if the file has none"
        )
    split = wanted.get("split_column")
    return names.index(data.file_column), names.index(data.target_column), names.index(split) if split else None


def read_file_list(path: Path, data: Data) -> list[Row]:
    """Read the rows of a list, blank ones left out. Cells missing at the end of a row are empty, as Excel writes them.

    Raises:
        QrayError: no file, not UTF-8, or no rows. UsageError: a column that the study names is not there, or twice.
    """
    records = _records(_text(path))
    _, header = next(records, (1, []))
    if not header:
        raise QrayError(f"{path}: line 1 is empty; it should name the columns, {data.file_column} among them")
    file, target, split = _columns(path, header, data)
    rows = []
    for line, cells in records:
        if cells is None:
            rows.append(Row(line, "", "", "", "its quotation marks do not match"))
        elif any(cell.strip() for cell in cells):
            problem = ""
            if any(cell.strip() for cell in cells[len(header) :]):
                problem = (
                    f"{len(cells)} cells, the header has {len(header)}; put text with commas between quotation marks"
                )
            cells += [""] * (len(header) - len(cells))
            split_cell = "" if split is None else cells[split].strip()
            rows.append(Row(line, cells[file].strip(), cells[target].strip(), split_cell, problem))
    if not rows:
        raise QrayError(f"{path}: no rows below the header")
    return rows
