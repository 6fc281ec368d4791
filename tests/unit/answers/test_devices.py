"""A run on two devices: answers compare within each, and the report shows both side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console
from support.evidence_runs import VARIANTS, Made, make_run
from support.reports import report_of, section
from support.runs import here

from qray.answers.pareto import pareto_front
from qray.answers.pick import choose
from qray.judge.evidence import Evidence
from qray.judge.judge import read_evidence
from qray.judge.table import write_table
from qray.point import Point
from qray.words.show import print_results, sorted_rows

ON_CUDA = Point(device="cuda", threads=1, batch=1)
GRAPH = {"device": "cuda", "cuda_graph": True}
#: On the GPU all are faster than anything on the CPU.
VARIANTS_OF_BOTH: Mapping[str, Made] = {
    **{name: VARIANTS[name] for name in ("fp32", "fp32-openvino", "ptq-openvino")},
    "fp32-cuda": Made("fp32", "eager", 0.0, 0.001, ms=0.8, settings={"device": "cuda"}),
    "fp32-cuda-graph": Made("fp32", "eager", 0.0, 0.001, ms=0.4, settings=GRAPH),
    "fp16-cuda-graph": Made("fp16", "eager", 0.01, 0.05, ms=0.2, size=1_750_000, settings=GRAPH),
}


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return read_evidence(make_run(tmp_path_factory.mktemp("run"), variants=VARIANTS_OF_BOTH, table=True))


def test_each_device_has_its_own_choice_and_says_that_there_is_another(evidence: Evidence) -> None:
    cpu, cuda = choose(evidence), choose(evidence, device="cuda")
    assert [c.picked.name if c.picked else None for c in (cpu, cuda)] == ["ptq-openvino", "fp16-cuda-graph"]
    assert [c.at for c in (cpu, cuda)] == [Point(threads=1, batch=1), ON_CUDA]
    assert {c.name for c in cuda.others} == {"fp32-cuda"}
    assert "on cpu; for cuda ask with --device" in cpu.notes
    assert cuda.picked is not None
    assert cuda.picked.faster is not None
    assert cuda.picked.faster.value == pytest.approx(4.0, rel=0.05)


def test_no_ratio_is_of_two_devices(evidence: Evidence) -> None:
    rows = {row.variant: row for row in evidence.rows if row.stage == "variant"}
    found = rows["fp16-cuda-graph"]
    assert (found.device, found.cuda_graph, found.best_fp32) == ("cuda", True, "fp32-cuda-graph")
    assert (found.speedup, found.speedup_engine, found.speedup_precision) == pytest.approx((4.0, 2.0, 2.0), rel=0.05)
    assert found.pays
    assert (rows["fp32"].speedup, rows["fp32-cuda"].speedup) == (1.0, 1.0)
    assert rows["ptq-openvino"].best_fp32 == "fp32-openvino"
    assert rows["ptq-openvino"].cuda_graph is None


def test_errors_are_compared_with_fp32_of_the_cpu(evidence: Evidence) -> None:
    rows = {row.variant: row for row in evidence.rows}
    assert rows["fp16-cuda-graph"].delta_mae == pytest.approx(0.01)
    assert rows["fp32-cuda"].verdict == "non-inferior"


def test_a_front_holds_variants_of_one_device(evidence: Evidence) -> None:
    on_cuda = {name for name, made in VARIANTS_OF_BOTH.items() if made.settings}
    assert {place.name for place in pareto_front(evidence, ON_CUDA).places} == on_cuda
    assert {place.name for place in pareto_front(evidence).places} == VARIANTS_OF_BOTH.keys() - on_cuda


def test_the_report_shows_what_to_ship_on_each_side_by_side(evidence: Evidence) -> None:
    shown = section(report_of(evidence.out), "devices")
    for words in ("ptq-openvino", "fp16-cuda-graph", "cuda, 1 thread, batch 1"):
        assert words in shown


def test_the_table_keeps_the_rows_of_a_device_together_its_fp32_first(evidence: Evidence) -> None:
    table = write_table(evidence)
    names = [row.variant for row in sorted_rows(table) if row.stage != "trial"]
    assert names == ["fp32", "ptq-openvino", "fp32-openvino", "fp32-cuda", "fp16-cuda-graph", "fp32-cuda-graph",
                     "mean-predictor"]  # fmt: skip
    console = Console(record=True, width=200)
    print_results(table, console)
    assert "cuda 1/1" in console.export_text()


def test_pick_asks_for_a_device_at_the_command_line(evidence: Evidence) -> None:
    found = json.loads(here("pick", evidence.out, "--device", "cuda", "--json").stdout)
    assert (found["device"], found["picked"]["name"]) == ("cuda", "fp16-cuda-graph")


def test_a_device_that_was_not_to_be_had_is_a_row_with_the_reason(tmp_path: Path) -> None:
    why = "no machine of this Ray has an NVIDIA GPU"
    gone = {name: {"status": "skipped", "reason": why} for name, made in VARIANTS_OF_BOTH.items() if made.settings}
    evidence = read_evidence(make_run(tmp_path / "out", variants=VARIANTS_OF_BOTH, change=gone))
    rows = {row.variant: row for row in evidence.rows if row.variant in gone}
    assert {(row.device, row.status) for row in rows.values()} == {("cuda", "skipped")}
    assert {row.reason for row in rows.values()} == {why}
    assert why in section(report_of(evidence.out), "devices")
    choice = choose(evidence)
    assert choice.picked is not None
    assert choice.picked.name == "ptq-openvino"
