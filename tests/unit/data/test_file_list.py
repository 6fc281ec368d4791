"""The CSV that lists the clips is read as people and spreadsheets write it, or refused in a plain sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qray.data.file_list import Row, read_file_list
from qray.errors import QrayError, UsageError
from qray.study import Data

GOOD = [Row(2, "a", "50", "TRAIN"), Row(3, "b", "60", "VAL")]


def read(tmp_path: Path, content: str | bytes, data: Data | None = None) -> list[Row]:
    path = tmp_path / "FileList.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_file_list(path, data or Data())


@pytest.mark.parametrize(
    "content",
    [
        "FileName,EF,Split\na,50,TRAIN\nb,60,VAL\n",
        "FileName,EF,Split\na,50,TRAIN\nb,60,VAL",
        "FileName,EF,Split\r\na,50,TRAIN\r\nb,60,VAL\r\n",
        "FileName,EF,Split\ra,50,TRAIN\rb,60,VAL\r",
        "\ufeffFileName,EF,Split\na,50,TRAIN\nb,60,VAL\n",
        ' FileName , EF,"Split"\n a , 50 ,TRAIN \n"b","60","VAL"\n',
        "FileName,EF,Split\na,50,TRAIN\nb,60,VAL\n\n,,\n   \n",
        "Note,Split,EF,Age,FileName\n,TRAIN,50,7,a\nx,VAL,60,8,b\n",
        "FileName,EF,Split\na,50,TRAIN,\nb,60,VAL,,\n",
    ],
    ids=["plain", "no-last-newline", "crlf", "cr", "bom", "spaces-quotes", "blank-lines", "extra-columns", "commas"],
)
def test_a_list_reads_the_same_however_it_was_saved(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content) == GOOD


@pytest.mark.parametrize(
    "content",
    [
        "sep=;\nFileName;EF;Split\na;50;TRAIN\nb;60;VAL\n",
        "\ufeffsep=;\r\nFileName;EF;Split\r\na;50;TRAIN\r\nb;60;VAL\r\n",
        "SEP=\t\nFileName\tEF\tSplit\na\t50\tTRAIN\nb\t60\tVAL\n",
        "sep=,\nFileName,EF,Split\na,50,TRAIN\nb,60,VAL\n",
        '"sep=;"\nFileName;EF;Split\n"a";50;TRAIN\nb;60;VAL\n',
        "sep=;;;\nFileName;EF;Split\na;50;TRAIN\nb;60;VAL\n",
    ],
    ids=["semicolons", "bom-crlf", "tabs", "commas", "quoted", "padded"],
)
def test_the_separator_that_the_first_line_names_is_used(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content) == [replace(row, line=row.line + 1) for row in GOOD]


def test_a_name_that_starts_like_a_separator_line_is_a_header(tmp_path: Path) -> None:
    assert read(tmp_path, "sep=x,FileName,EF\n1,a,50\n")[0].file == "a"


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    rows = read(tmp_path, 'FileName,EF,Note\n\na,50,"two\nlines"\nb,60,x\n')
    assert [(row.line, row.file) for row in rows] == [(3, "a"), (5, "b")]


def test_quoted_commas_belong_to_the_cell(tmp_path: Path) -> None:
    assert read(tmp_path, 'FileName,EF\n"a, second visit",50\n')[0].file == "a, second visit"


def test_a_row_with_too_few_cells_has_empty_ones(tmp_path: Path) -> None:
    assert read(tmp_path, "FileName,EF,Split\na,50\nb\n") == [Row(2, "a", "50", ""), Row(3, "b", "", "")]


def test_a_row_with_too_many_cells_has_a_problem_and_its_neighbours_have_none(tmp_path: Path) -> None:
    rows = read(tmp_path, "FileName,EF,Split\na,50,TRAIN\nb, left,60,VAL\nc,70,VAL\n")
    assert [bool(row.problem) for row in rows] == [False, True, False]


def test_rows_that_all_have_a_cell_too_many_are_not_shifted(tmp_path: Path) -> None:
    rows = read(tmp_path, "FileName,EF\n1,a,50\n2,b,60\n")
    assert all("3 cells, the header has 2" in row.problem for row in rows)


def test_a_missing_quotation_mark_costs_its_own_row_only(tmp_path: Path) -> None:
    rows = read(tmp_path, 'FileName,EF,Split\na,50,TRAIN\n"b,60,VAL\nc,70,VAL\n')
    assert [(row.line, row.file, bool(row.problem)) for row in rows] == [
        (2, "a", False),
        (3, "", True),
        (4, "c", False),
    ]


def test_the_group_is_read_when_the_study_names_its_column(tmp_path: Path) -> None:
    rows = read(tmp_path, "FileName,EF,Patient\na,50, p1 \nb,60\n", Data(group_column="Patient"))
    assert [row.group for row in rows] == ["p1", ""]


def test_without_a_split_column_the_split_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path, "FileName,EF\na,50\n") == [Row(2, "a", "50", "")]


def test_a_split_column_that_the_study_does_not_want_is_not_read(tmp_path: Path) -> None:
    assert read(tmp_path, "FileName,EF,Split\na,50,TRAIN\n", Data(split_column=None)) == [Row(2, "a", "50", "")]


def test_other_columns_are_read_when_the_study_names_them(tmp_path: Path) -> None:
    data = Data(file_column="path", target_column="age", split_column="fold")
    assert read(tmp_path, "path,age,fold,EF\nx.mp4,7.5,dev,50\n", data) == [Row(2, "x.mp4", "7.5", "dev")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "line 1 is empty; it should name the columns"),
        ("\n\n", "line 1 is empty; it should name the columns"),
        ("FileName,EF,Split\n", "no rows below the header"),
        ("FileName,EF,Split\n\n,,\n", "no rows below the header"),
        (b"FileName,EF\na,50\nb\xe9,60\n", "line 3: not UTF-8 text .*save the list as UTF-8"),
        ("FileName,EF\na,50\n".encode("utf-16"), "not UTF-8 text .*save the list as UTF-8"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path, content: str | bytes, says: str) -> None:
    with pytest.raises(QrayError, match=says) as caught:
        read(tmp_path, content)
    assert str(tmp_path / "FileList.csv") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "Name,EF\na,50\n",
            r"line 1: no column 'FileName' \(data.file_column\).* are Name, EF\..*--set data.file_column",
        ),
        ("FileName,ef\na,50\n", r"no column 'EF' \(data.target_column\)"),
        ("a,50,TRAIN\nb,60,VAL\n", "no column 'FileName'.*add a header line"),
        (
            "FileName;EF;Split\na;50;TRAIN\n",
            "line 1: cells are separated by semicolons; save the list with commas, or put the line sep=; above",
        ),
        ("sep=;\nFileName,EF,Split\na,50,TRAIN\n", "line 2: cells are separated by commas"),
        ("sep=,\nFileName;EF;Split\na;50;TRAIN\n", "line 2: cells are separated by semicolons"),
        ("sep=;\nName;EF\na;50\n", "line 2: no column 'FileName'"),
        ("FileName\tEF\na\t50\n", "separated by tabs; save the list with commas"),
        ("FileName,EF,EF\na,50,60\n", r"2 columns are called 'EF' \(data.target_column\)"),
    ],
)
def test_a_header_without_the_columns_of_the_study_is_bad_usage(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read(tmp_path, content)


def test_a_missing_list_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(QrayError, match=r"FileList.csv: no such file.*data.file_list"):
        read_file_list(tmp_path / "FileList.csv", Data())


def test_a_missing_folder_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(QrayError, match=r"no such folder.*--data"):
        read_file_list(tmp_path / "none" / "FileList.csv", Data())
