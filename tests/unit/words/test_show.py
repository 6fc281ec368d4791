"""The table on a screen, in a pipe and as JSON."""

from __future__ import annotations

import io
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from support.outcomes import AT, baseline, fp32, latency, outcome, predictions, table, trial

from qray.errors import QrayError
from qray.measure.latency import Latency
from qray.point import Point
from qray.questions import print_columns
from qray.words.show import print_results, read_results, render, results_json, sorted_rows
from qray.words.terminal import results_console

LONG = [
    outcome(f"{method}-onnxruntime", method, "onnxruntime", noise=noise, ms=ms)
    for method, noise, ms in (("fp32", 1.0, 68.0), ("ptq", 1.1, 20.6), ("bf16", 3.0, 300.25))
]
TABLE = table(fp32(), *LONG, baseline(), trial(4.25), trial(4.0))
RED, YELLOW = "\x1b[31m", "\x1b[33m"


def lines(of: pa.Table, width: int, terminal: bool = False) -> list[str]:
    colors: Any = "standard" if terminal else None
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=colors)
    print_results(of, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def grid(of: pa.Table, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(of, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def several() -> pa.Table:
    at = {AT: latency(80.0), Point(threads=4, batch=8): latency(400.0)}
    return table(fp32(latency=at), outcome("ptq-onnxruntime", "ptq", "onnxruntime", noise=1.1, latency=at), baseline())


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_row_is_wrapped(width: int) -> None:
    assert len(grid(TABLE, width)) == 1 + 5


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("of", [TABLE, several()], ids=["one point", "several points"])
def test_no_figure_is_cut_off(of: pa.Table, width: int) -> None:
    text = grid(of, width)
    assert max(map(len, text)) <= width
    assert "…" not in "".join(text)


@pytest.mark.parametrize("title", ["MAE", "Δ to fp32 (95 %)", "verdict", "speed-up", "p50 ms"])
def test_a_terminal_of_80_columns_shows_what_decides(title: str) -> None:
    assert title in grid(TABLE, 80)[0]


@pytest.mark.parametrize("title", ["weights MB", "INT8", "engine × precision", "RSS MB"])
def test_a_wide_terminal_shows_everything(title: str) -> None:
    assert title in grid(TABLE, 140)[0]


def test_a_figure_that_was_not_measured_is_a_dash() -> None:
    row = next(line for line in grid(table(fp32(), outcome("x", "ptq", "openvino", ms=None)), 140) if line[0] == "x")
    assert "–" in row
    assert " 0.00 " not in row


def test_the_reference_is_the_first_row_and_the_rest_is_sorted_by_latency() -> None:
    names = [row.variant for row in sorted_rows(TABLE)][:4]
    assert names == ["fp32", "ptq-onnxruntime", "fp32-onnxruntime", "bf16-onnxruntime"]


def test_trials_are_listed_by_their_val_mae() -> None:
    shown = [line.split()[0] for line in lines(TABLE, 140) if "qat-w8-abcdef" in line]
    assert shown == ["4.000", "4.250"]


def test_threads_and_batch_are_shown_when_there_are_several() -> None:
    assert [line.split()[1] for line in grid(several(), 140)[1:3]] == ["1/1", "4/8"]


def test_a_baseline_that_was_not_beaten_is_printed_in_red() -> None:
    text = lines(table(fp32(noise=20.0), baseline()), 140, terminal=True)
    assert next(line for line in text if "does not beat" in line).startswith(RED)


def test_a_baseline_that_was_not_beaten_is_said_once_for_all_points() -> None:
    at = {AT: latency(80.0), Point(threads=4, batch=8): latency(400.0)}
    text = lines(table(fp32(noise=20.0, latency=at), baseline()), 200)
    assert sum("does not beat" in line for line in text) == 1


@pytest.mark.parametrize("status", ["skipped", "failed"])
def test_what_is_missing_is_printed_with_its_reason(status: str) -> None:
    gone = outcome("gone", "ptq", "openvino", predictions=None, status=status, reason="no [engine] here")
    assert f"gone: {status}: no [engine] here" in lines(table(fp32(), gone), 140)


def test_an_inconclusive_verdict_says_how_many_clips_would_settle_it() -> None:
    text = lines(table(fp32(), outcome("unclear", "ptq", "openvino", noise=1.4)), 140)
    (line,) = [line for line in text if line.startswith("unclear: inconclusive on 60 clips")]
    assert line.endswith(" clips would settle it")


def test_an_inconclusive_verdict_is_said_once_for_all_points() -> None:
    at = {AT: latency(80.0), Point(threads=4, batch=8): latency(400.0)}
    of = table(fp32(latency=at), outcome("unclear", "ptq", "openvino", noise=1.4, latency=at))
    assert sum("would settle it" in line for line in lines(of, 140)) == 1


def test_a_clear_verdict_says_nothing_of_further_clips() -> None:
    clear = table(fp32(), outcome("clear", "ptq", "openvino"))
    assert not [line for line in lines(clear, 140) if "would settle it" in line]


def test_one_clip_can_be_shown() -> None:
    one = table(fp32(predictions=predictions([58.0], np.array([55.0]))))
    assert any("1 clips" in line for line in lines(one, 140))


def test_a_run_in_which_nothing_was_built_can_be_shown() -> None:
    gone = fp32(predictions=None, latency={}, status="failed", reason="x")
    assert "fp32: failed: x" in lines(table(gone, baseline()), 140)


def test_output_that_is_no_terminal_has_no_escape_codes_and_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(TABLE, results_console())
    text = capsys.readouterr().out
    assert ("\x1b" in text, "RSS MB" in text) == (False, True)


def test_json_has_every_row_and_column() -> None:
    rows = json.loads(results_json(TABLE))
    assert (len(rows), list(rows[0])) == (TABLE.num_rows, TABLE.column_names)


def test_json_times_are_iso_8601() -> None:
    assert datetime.fromisoformat(json.loads(results_json(TABLE))[0]["created_at"]).year == 2026


def test_json_has_null_for_what_was_not_measured() -> None:
    def refuse(word: str) -> Any:
        raise AssertionError(word)

    assert json.loads(results_json(TABLE), parse_constant=refuse)[0]["peak_rss_mb"] is None


def test_results_read_back(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "results.parquet")
    assert read_results(tmp_path) == TABLE


def test_a_folder_without_results_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(QrayError, match="qray run all"):
        read_results(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no parquet", b"PAR1PAR1"])
def test_broken_results_say_how_to_write_them_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.parquet").write_bytes(content)
    with pytest.raises(QrayError, match="qray run table"):
        read_results(tmp_path)


def test_results_of_another_version_name_what_they_lack(tmp_path: Path) -> None:
    pq.write_table(TABLE.drop_columns(["speedup"]), tmp_path / "results.parquet")
    with pytest.raises(QrayError, match="another version, without speedup"):
        read_results(tmp_path)


def test_results_with_a_further_column_are_read(tmp_path: Path) -> None:
    further = TABLE.append_column("later", pa.array([1] * TABLE.num_rows))
    pq.write_table(further, tmp_path / "results.parquet")
    assert read_results(tmp_path).num_rows == TABLE.num_rows


def int8_at(ms: float) -> list[str]:
    """What is printed of a run in which FP32 takes 8 ms on its fastest engine and INT8 takes `ms`, give or take 1 %."""

    def at(of: float) -> Any:
        return {AT: Latency([[of * (1 + 0.01 * i)] * 20 for i in range(3)])}

    quick = Latency([[ms * by] * 20 for by in (1.02, 1.0, 1.01)])
    made = table(
        fp32(latency=at(16.0)), outcome("fp32-ov", "fp32", "openvino", latency=at(8.0)),
        outcome("int8", "ptq", "openvino", latency={AT: quick}),
    )  # fmt: skip
    return lines(made, 140, terminal=True)


def test_int8_that_is_slower_than_the_fastest_fp32_is_printed_in_yellow() -> None:
    (line,) = [line for line in int8_at(10.0) if "int8:" in line]
    assert line.startswith(YELLOW)
    assert "INT8 does not pay here: 0.80x (0.75, 0.85) the speed of fp32-ov, the fastest FP32 engine" in line


def test_int8_that_may_be_as_fast_as_the_fastest_fp32_is_said_to_be_open() -> None:
    (line,) = [line for line in int8_at(8.0) if "int8:" in line]
    assert "whether INT8 pays here is not settled: 1.00x" in line


def test_of_int8_that_is_faster_nothing_is_said() -> None:
    assert not [line for line in int8_at(2.0) if "int8:" in line]


def test_every_column_says_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    print_columns(as_json=True)
    legend = json.loads(capsys.readouterr().out)
    assert list(legend) == TABLE.column_names
    assert all(len(column["meaning"]) > 4 for column in legend.values())


def test_the_legend_of_a_terminal_names_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    print_columns(as_json=False)
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert set(TABLE.column_names) <= set(shown)
