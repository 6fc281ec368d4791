"""Rows said while a run goes on: as soon as a variant is evaluated, once, and the same as in the table."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.evidence_runs import make_run

from qray.judge.judge import read_evidence
from qray.units.rows import Rows
from qray.words.figures import cell


@pytest.fixture
def said() -> list[str]:
    """What is said."""
    return []


def line_of(variant: str, said: list[str]) -> str:
    (line,) = [line for line in said if line.split()[0] == variant]
    return line


def test_a_row_says_what_the_table_will_say(tmp_path: Path, said: list[str]) -> None:
    Rows(make_run(tmp_path), said.append).say_new()
    rows = [row for row in read_evidence(tmp_path).rows if row.mae is not None and row.stage == "variant"]
    compared = [row for row in rows if row.verdict is not None]
    assert compared
    for row in compared:
        shown = [cell(row, name) for name in ("mae", "delta_mae", "verdict", "size_bytes")]
        assert all(figure in line_of(row.variant, said) for figure in shown)


def test_the_mean_predictor_needs_no_other(tmp_path: Path, said: list[str]) -> None:
    variants = {variant.name for variant in read_evidence(make_run(tmp_path / "all")).variants}
    Rows(make_run(tmp_path / "first", without=variants), said.append).say_new()
    (line,) = said
    assert line.startswith("mean-predictor")
    assert "200 TEST clips" in line


def test_each_row_is_said_once_and_when_it_is_there(tmp_path: Path, said: list[str]) -> None:
    rows = Rows(make_run(tmp_path, without={"ptq-openvino"}), said.append)
    rows.say_new()
    before = len(said)
    rows.say_new()
    make_run(tmp_path)
    rows.say_new()
    assert [line.split()[0] for line in said[before:]] == ["ptq-openvino"]


def test_a_variant_that_the_table_refuses_has_no_figures(tmp_path: Path, said: list[str]) -> None:
    parity = {"simulated": [50.0], "deployed": [50.0]}
    notes = {"quantization_rms": 1.0, "kernel_rms": 2.0, "parity_max_abs": 3.0, "parity": parity}
    Rows(make_run(tmp_path, change={"ptq-openvino": {"notes": notes}}), said.append).say_new()
    assert "failed" in line_of("ptq-openvino", said)
    assert "MAE" not in line_of("ptq-openvino", said)
