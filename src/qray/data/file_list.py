"""The CSV that lists the clips -> its rows with their line numbers, or a plain sentence about why it is no list."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qray.errors import QrayError, UsageError
from qray.storage.place import Place
from qray.study import Data
from qray.yaml_text import short

#: Of a list; a million clips take a tenth of it.
MAX_BYTES = 2**30
#: Separators that spreadsheets write.
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of one row that the study names; split and group are "" where there is none. problem: what is wrong."""

    line: int  # of the file, the header's is 1
    file: str
    target: str
    split: str
    problem: str = ""
    group: str = ""


def _text(path: Path | Place) -> str:
    if isinstance(path, Path) and not path.parent.is_dir():
        raise QrayError(f"{path.parent}: no such folder; name the data set's folder with --data")
    if isinstance(path, Path) and path.exists() and not path.is_file():
        raise QrayError(f"{path}: not a file; a data set needs the list of its clips there")
    if isinstance(path, Path) and not path.is_file():
        raise _no_list(path)
    try:
        if (size := _size(path)) > MAX_BYTES:
            raise QrayError(f"{path}: {size / 2**30:.1f} GiB; qray reads lists of at most {MAX_BYTES / 2**30:.0f} GiB")
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise _no_list(path) from None
    except OSError as error:
        raise QrayError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise QrayError(f"{path}, line {line}: not UTF-8 text ({error.reason}); save the list as UTF-8") from None


def _size(path: Path | Place) -> int:
    if isinstance(path, Path):
        return path.stat().st_size
    stat = path.stat()
    return 0 if stat is None else stat.size


def _no_list(path: Path | Place) -> QrayError:
    return QrayError(
        f"{path}: no such file; a data set needs this list of clips (another name: data.file_list in the study)"
    )


def _records(text: str, separator: str) -> Iterator[tuple[int, list[str] | str]]:
    """(line, cells) of each record. Where quotation marks do not match, or a cell has no end, each line is read alone:
    what is wrong with it, if it is bad.

    Read otherwise, one missing quotation mark would swallow all rows that follow it.
    """

    def whole() -> Iterator[tuple[int, list[str]]]:
        reader, line = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator), 1
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1

    try:
        # Twice, since the records of a long list take many times the memory of its text.
        for _ in whole():
            pass
    except csv.Error:
        for line, single in enumerate(io.StringIO(text, newline=None), start=1):
            try:
                yield line, next(csv.reader([single], strict=True, delimiter=separator), [])
            except csv.Error:
                most = csv.field_size_limit()
                long = f"a cell of more than {most:,} characters"
                yield line, long if len(single) > most else "its quotation marks do not match"
    else:
        yield from whole()


def _columns(where: str, header: list[str], data: Data, separator: str) -> dict[str, int]:
    """Number of the column that each key of the study names; without the split's where the list has none."""
    names = [name.strip() for name in header]
    wanted = {"file_column": data.file_column, "target_column": data.target_column}
    if data.split_column in names:
        wanted["split_column"] = str(data.split_column)
    if data.group_column is not None:
        wanted["group_column"] = data.group_column
    for key, column in wanted.items():
        if column in names:
            if names.count(column) > 1:
                raise UsageError(f"{where}: {names.count(column)} columns are called {column!r} (data.{key})")
            continue
        for other, called in SEPARATORS.items():
            if other == separator:
                continue
            if column in [name.strip(" \"'") for name in separator.join(header).split(other)]:
                raise UsageError(
                    f"{where}: cells are separated by {called}; save the list with commas, "
                    f"or put the line sep={other} above the header"
                )
        raise UsageError(
            f"{where}: no column {column!r} (data.{key}); the columns named there are {_listed(names)}. "
            f"Name the right one with --set data.{key}=..., or add a header line if the file has none"
        )
    return {key: names.index(column) for key, column in wanted.items()}


def _listed(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(short(name) for name in names[:most]) + more


def read_file_list(path: Path | Place, data: Data) -> list[Row]:
    """Read the rows of a list, blank ones left out. Cells missing at the end of a row are empty, as Excel writes them.

    A first line `sep=;` names the separator, as in Excel; the header is then the second.

    Raises:
        QrayError: no file, not UTF-8, or no rows. UsageError: a column that the study names is not there, or twice.
    """
    text = _text(path)
    named = re.match(r"\"?sep=(.)\"?[,;\t]*(?=\r|\n|$)", text, re.IGNORECASE)
    separator = named.group(1) if named else ","
    records = _records(text, separator)
    if named:
        next(records)
    top, header = next(records, (1 + bool(named), []))
    where = f"{path}, line {top}"
    if isinstance(header, str):
        raise QrayError(f"{where}: {header}; it should name the columns, {data.file_column} among them")
    if not header:
        raise QrayError(f"{path}: line {top} is empty; it should name the columns, {data.file_column} among them")
    columns = _columns(where, header, data, separator)
    rows = []
    for line, cells in records:
        if isinstance(cells, str):
            rows.append(Row(line, "", "", "", cells))
        elif any(cell.strip() for cell in cells):
            problem = ""
            if any(cell.strip() for cell in cells[len(header) :]):
                called = SEPARATORS.get(separator, repr(separator))
                problem = (
                    f"{len(cells)} cells, the header has {len(header)}; put text with {called} between quotation marks"
                )
            of = {key: cells[at].strip() if at < len(cells) else "" for key, at in columns.items()}
            split, group = of.get("split_column", ""), of.get("group_column", "")
            rows.append(Row(line, of["file_column"], of["target_column"], split, problem, group))
    if not rows:
        raise QrayError(f"{path}: no rows below the header")
    return rows
