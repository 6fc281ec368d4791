"""results.parquet opens in what people read tables with, and says the same there."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import duckdb
import pandas as pd
import polars
import pyarrow.parquet as pq
import pytest
from support.outcomes import baseline, fp32, outcome, table

from qray.atomic import write_parquet

#: A compiler's colours, which a spreadsheet refuses; what it would take for a formula is no first word of a reason.
REASON = "C++ compile error: \x1b[31merror\x1b[0m"
MADE = datetime(2026, 1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readers") / "results.parquet"
    lost = outcome("ptq-inductor", "ptq", "inductor", predictions=None, status="failed", reason=REASON)
    write_parquet(path, table(fp32(), outcome("ptq-openvino", "ptq", "openvino", 1.1, ms=20.0), lost, baseline()))
    return path


def test_it_goes_from_pandas_to_excel_and_back(path: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(path)
    frame.to_excel(tmp_path / "results.xlsx", index=False)
    back = pd.read_excel(tmp_path / "results.xlsx")
    assert list(back.columns) == list(frame.columns)
    # A spreadsheet keeps 15 digits, and has no types: an empty cell is empty whatever its column held.
    plain = [one.astype(object).where(one.notna(), None) for one in (back, frame)]
    pd.testing.assert_frame_equal(*plain, check_dtype=False, rtol=1e-12)


def test_duckdb_reads_it(path: Path) -> None:
    asked = f"select variant, created_at, mae, reason from '{path}' where status = 'ok' order by mae"
    rows = duckdb.sql(asked).fetchall()
    assert [row[0] for row in rows] == ["fp32", "ptq-openvino", "mean-predictor"]
    assert {row[1] for row in rows} == {MADE}


def test_polars_reads_it(path: Path) -> None:
    frame = polars.read_parquet(path)
    assert frame["created_at"].unique().to_list() == [MADE]
    assert frame.filter(polars.col("status") == "failed")["mae"].to_list() == [None]


def test_what_nobody_measured_is_null_and_nothing_is_nan(path: Path) -> None:
    frame = pq.read_table(path).to_pandas(types_mapper=pd.ArrowDtype)
    floats = frame.select_dtypes("float64[pyarrow]")
    assert int((floats != floats).fillna(False).to_numpy().sum()) == 0


def test_reasons_hold_no_control_characters(path: Path) -> None:
    reasons = duckdb.sql(f"select reason from '{path}' where status = 'failed'").fetchall()
    assert reasons == [(r"C++ compile error: \x1b[31merror\x1b[0m",)]
