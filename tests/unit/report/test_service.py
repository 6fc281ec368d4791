"""Cold starts and streams, from the record of their unit to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.evidence_runs import key_of, make_run
from support.reports import report_of, section

from qray.judge.judge import read_evidence

MEASURE = {"serving": {"streams": [1, 2], "bound_ms": 50}}


def streams(count: int, clips_s: float, p95_ms: float | None) -> dict[str, Any]:
    return {"streams": count, "clips_s": clips_s, "calls": 100, "p50_ms": 1.0, "p95_ms": p95_ms}


SERVED = {
    "fp32": {"cold_starts_s": [3.0, 5.0, 4.0], "streams": [streams(1, 120, 9.0), streams(2, 200, 60.0)], "error": None},
    "ptq-openvino": {"cold_starts_s": [0.5], "streams": [streams(1, 640, 1.6), streams(2, 1250, 2.0)], "error": None},
    "dynamic": {"cold_starts_s": [], "streams": [], "error": "its process ended: no memory"},
    "fp32-openvino": {"cold_starts_s": [0.4], "streams": [streams(1, 9, 80.0), streams(2, 10, None)], "error": None},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    record = {"served": {key_of("build", name): served for name, served in SERVED.items()}, "device": "cpu"}
    units = {"serve-def": record | {"threads": 1, "batch": 1}}
    return make_run(tmp_path_factory.mktemp("served") / "out", measure=MEASURE, units=units)


def test_rows_have_what_was_measured_of_their_own_artifact(out: Path) -> None:
    rows = {variant.name: variant.row for variant in read_evidence(out).variants}
    assert (rows["fp32"].cold_start_s, rows["fp32"].streams, rows["fp32"].streams_clips_s) == (4.0, 1, 120)
    assert (rows["ptq-openvino"].streams, rows["ptq-openvino"].streams_p95_ms) == (2, 2.0)
    assert "cold starts and streams not measured: its process ended: no memory" in (rows["dynamic"].reason or "")
    assert "no number of streams keeps 95 % of its calls within 50 ms" in (rows["fp32-openvino"].reason or "")
    assert rows["bf16-openvino"].streams is rows["bf16-openvino"].cold_start_s is None


def test_the_report_shows_each_number_of_streams(out: Path) -> None:
    said = section(report_of(out), "service")
    for words in ("1 at once: clips/s (p95 ms)", "2 at once", "most within 50 ms", "1250 (2.0)", "200 (60.0)", "4.00"):
        assert words in said


def test_without_streams_the_report_says_nothing_of_them(tmp_path: Path) -> None:
    assert "service" not in [found.anchor for found in report_of(make_run(tmp_path / "out")).sections]
