"""The whole road on 1, 2 and 4 logical CPUs: the known hang of Ray Data only shows on full passes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from support.runs import WHOLE, Finished, here, lines_with, predictions, results, tiny_here, unit_times, units

from qray.errors import QrayError
from qray.judge.index import unit_files
from qray.judge.judge import read_evidence
from qray.measure.costs import PARTS
from qray.report.timeline import timeline_of

#: Runs on two and four are ended by test_resume, and go on to their end.
CPUS = (1, *(pytest.param(cpus, marks=pytest.mark.slow) for cpus in (2, 4)))
#: Batch sizes that are measured on each number of CPUs.
BATCHES = {1: (1,), 2: (1, 2), 4: (1,)}
#: And variants.
VARIANTS = {cpus: {"fp32", "ptq-onnxruntime", "finetune"} | ({"mixed"} if cpus == 4 else set()) for cpus in BATCHES}
WholeRun = Callable[[int], tuple[Path, Finished]]


@pytest.fixture(params=CPUS, ids=lambda n: f"{n}-cpu")
def cpus(request: pytest.FixtureRequest) -> int:
    """How many logical CPUs there are."""
    return int(request.param)


@pytest.fixture
def finished(cpus: int, whole_run: WholeRun) -> tuple[Path, str]:
    """OUT and the log of a run on each number of CPUs."""
    out, done = whole_run(cpus)
    return out, done.stderr


@pytest.fixture
def one(whole_run: WholeRun, tmp_path: Path) -> Path:
    """OUT of a finished run, for the runs that come after it."""
    return Path(shutil.copytree(whole_run(1)[0], tmp_path / "out"))


def test_a_full_pass_ends_with_every_row_filled(finished: tuple[Path, str], cpus: int) -> None:
    rows = results(finished[0])
    variants = rows[rows["stage"] == "variant"]
    assert set(variants["variant"]) == VARIANTS[cpus]
    assert (variants["status"] == "ok").all(), variants["reason"].tolist()
    assert len(variants) == len(VARIANTS[cpus]) * len(BATCHES[cpus])
    assert variants[["mae", "delta_mae", "latency_p50_ms", "peak_rss_mb", "size_bytes"]].notna().all().all()
    assert (rows["stage"] == "trial").sum() == 2
    assert (rows["stage"] == "baseline").sum() == 1


def test_a_full_pass_knows_how_certain_its_speed_ups_are(finished: tuple[Path, str]) -> None:
    rows = results(finished[0])
    variants = rows[rows["stage"] == "variant"]
    assert (variants["speedup_low"] <= variants["speedup"]).all()
    assert (variants["speedup"] <= variants["speedup_high"]).all()
    assert set(variants["best_fp32"]) == {"fp32"}


def test_a_full_pass_names_the_point_of_each_measurement(finished: tuple[Path, str], cpus: int) -> None:
    found = units(finished[0], "measure")
    assert sorted((unit["threads"], unit["batch"]) for unit in found) == [(1, batch) for batch in BATCHES[cpus]]


def test_a_full_pass_knows_what_a_clip_costs(finished: tuple[Path, str]) -> None:
    (unit,) = units(finished[0], "costs")
    assert set(unit["blocks_ms"]) == set(PARTS)


def test_every_unit_says_when_and_where_it_ran_and_who_made_it(finished: tuple[Path, str]) -> None:
    found = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in unit_files(finished[0])}
    assert {name.partition("-")[0] for name in found} >= {
        "train", "validate", "trial", "sweep", "finetune", "build", "evaluate", "measure", "memory", "costs"
    }  # fmt: skip
    wanted = {"started", "seconds", "node", "host", "cpu_flags", "versions", "label"}
    lacking = {name: wanted - unit.keys() for name, unit in found.items() if not name.startswith("data-")}
    assert not any(lacking.values()), lacking


def test_the_timeline_and_the_timing_show_every_unit(finished: tuple[Path, str]) -> None:
    evidence = read_evidence(finished[0])
    kinds = {unit["kind"] for unit in evidence.units} - {"data"}
    timeline = timeline_of(evidence.units, evidence.timing)
    assert timeline is not None
    assert evidence.timing is not None
    assert {bar.kind for bar in timeline.bars} == kinds
    assert {kind for phase in evidence.timing.phases for kind in evidence.timing.kinds(phase)} == kinds


def test_the_log_shows_that_evaluation_overlaps_training(finished: tuple[Path, str]) -> None:
    out, log = finished
    found = [json.loads(unit.read_text(encoding="utf-8")) for unit in unit_files(out)]
    spans = {u["label"]: (u["started"], u["started"] + u["seconds"]) for u in found if "label" in u}
    sweep = spans["sweep 2 QAT trials"]
    early = [spans["build fp32"], spans["evaluate fp32"], spans["build ptq-onnxruntime"]]
    assert any(start < sweep[1] and end > sweep[0] for start, end in early), spans
    assert lines_with(log, "start sweep")


def test_each_row_is_said_as_it_comes_the_mean_predictors_first(finished: tuple[Path, str], cpus: int) -> None:
    log = finished[1]
    said = re.findall(r"\] (\S+) +MAE [0-9.]+ on 12 TEST clips", log)
    assert said[0] == "mean-predictor"
    assert sorted(said) == sorted({*VARIANTS[cpus], "mean-predictor"})
    assert log.index("mean-predictor") < log.index("done  train fp32")
    assert log.rindex("on 12 TEST clips") < log.index("start measure")


@pytest.mark.slow
def test_plain_quantization_that_holds_on_val_is_the_mix_and_is_built_once(whole_run: WholeRun) -> None:
    out, done = whole_run(4)
    rows = results(out).set_index("variant")
    assert tuple(rows.loc["mixed", ["kept_layers", "layers", "evaluations"]]) == (0, 20, 1)
    pd.testing.assert_series_equal(predictions(out, "mixed"), predictions(out, "ptq-onnxruntime"))
    assert len(units(out, "build")) == len(VARIANTS[4])
    assert "mixed: mixed precision: 0 of 20 layers in FP32, 1 evaluation" in done.stdout.replace("\n", " ")


def test_a_first_run_prints_and_reports_where_its_time_went(cpus: int, whole_run: WholeRun) -> None:
    out, done = whole_run(cpus)
    assert "Where the time went" in done.stdout
    assert "train, build and evaluate" in (out / "report.md").read_text(encoding="utf-8")


def test_the_same_command_again_does_no_work(one: Path, tiny_dataset: Path) -> None:
    before, table = unit_times(one), results(one).drop(columns=["created_at"])
    shown = [(one / name).stat().st_mtime_ns for name in ("results.parquet", "report.html")]
    again = tiny_here("all", tiny_dataset, one, *WHOLE[1])
    assert again.code == 0, again.stderr
    assert not lines_with(again.stderr, "start "), again.stderr
    assert unit_times(one) == before
    assert [(one / name).stat().st_mtime_ns for name in ("results.parquet", "report.html")] == shown
    pd.testing.assert_frame_equal(results(one).drop(columns=["created_at"]), table)


def test_another_margin_changes_verdicts_and_redoes_nothing(one: Path, tiny_dataset: Path) -> None:
    before = unit_times(one)
    done = tiny_here("evaluate", tiny_dataset, one, "--set", "verdict.margin=50")
    assert done.code == 0, done.stderr
    assert unit_times(one) == before
    rows = results(one)
    assert set(rows["verdict"].dropna()) == {"non-inferior"}


def test_show_prints_the_table_of_a_finished_run(one: Path) -> None:
    shown = here("show", one)
    assert shown.code == 0
    assert "ptq-onnxruntime" in shown.stdout
    assert "of the time is outside the network" in shown.stdout.replace("\n", " ")
    as_json = json.loads(here("show", one, "--json").stdout)
    assert as_json[0]["variant"] == "fp32"


def test_the_table_can_be_rebuilt_from_what_out_holds(one: Path) -> None:
    table = results(one)
    (one / "results.parquet").unlink()
    done = here("run", "table", one)
    assert done.code == 0, done.stderr
    pd.testing.assert_frame_equal(results(one), table)


def test_a_run_whose_report_cannot_be_written_keeps_its_table_and_says_so(one: Path, tiny_dataset: Path) -> None:
    (one / "results.parquet").unlink()
    (one / "report.html").unlink()
    (one / "report.html" / "in the way").mkdir(parents=True)
    with pytest.raises(QrayError, match=r"the run is finished and its table written, but the report was not written"):
        tiny_here("all", tiny_dataset, one, *WHOLE[1])
    assert (one / "results.parquet").is_file()
