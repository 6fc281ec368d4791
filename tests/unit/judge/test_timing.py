"""Where the time went: read from what a run left, and told in a few lines."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qray.atomic import write_json
from qray.judge.index import read_units
from qray.judge.timing import Timing, read_timing, write_phases
from qray.words.show_run import render_timing

BEGAN = 1_800_000_000.0
PHASES = {"load qray": 3.0, "start Ray": 5.0, "train, build and evaluate": 60.0, "measure latency and costs": 30.0,
          "write the table": 2.0}  # fmt: skip


def unit(out: Path, name: str, seconds: float, after: float = 10.0, **more: Any) -> None:
    label = name.replace("-", " ")
    write_json(out / "units" / f"{name}.json", {"label": label, "started": BEGAN + after, "seconds": seconds} | more)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_phases(tmp_path, PHASES, 100.0, BEGAN)
    unit(tmp_path, "train-a", 40.0)
    unit(tmp_path, "build-b", 20.0)
    unit(tmp_path, "build-c", 30.0)
    unit(tmp_path, "evaluate-d", 30.0)
    unit(tmp_path, "measure-e", 25.0)
    return tmp_path


def timing(out: Path) -> Timing:
    found = read_timing(out, read_units(out)[0])
    assert found is not None
    return found


def lines(out: Path) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    console.print(render_timing(timing(out)))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_phases_keep_their_order(out: Path) -> None:
    assert list(timing(out).phases) == list(PHASES)


def test_the_overlap_is_busy_seconds_over_the_seconds_of_the_phase(out: Path) -> None:
    assert timing(out).overlap() == pytest.approx((40 + 20 + 30 + 30) / 60)


def test_measuring_is_no_part_of_the_overlap(out: Path) -> None:
    before = timing(out).overlap()
    unit(out, "measure-f", 500.0)
    assert timing(out).overlap() == before


def test_a_sweep_and_its_trials_are_not_counted_twice(out: Path) -> None:
    unit(out, "sweep-s", 30.0)
    for name in ("trial-x", "trial-y"):
        unit(out, name, 25.0)
    assert timing(out).overlap() == pytest.approx((120 + 50) / 60)


@pytest.mark.parametrize(("after", "phase"), [(20.0, "train, build and evaluate"), (70.0, "measure latency and costs")])
def test_a_kind_that_nobody_knows_stands_in_the_phase_in_which_it_began(out: Path, after: float, phase: str) -> None:
    unit(out, "of_tomorrow-x", 5.0, after=after)
    assert [p for p in PHASES if "of_tomorrow" in timing(out).kinds(p)] == [phase]


@pytest.mark.parametrize("kind", ["layers", "sensitivity", "memory", "costs", "trial", "validate"])
def test_every_kind_has_its_line(out: Path, kind: str) -> None:
    unit(out, f"{kind}-x", 5.0)
    assert any(line.startswith(f"  {kind} ") for line in lines(out))


def test_a_run_without_units_has_no_overlap(tmp_path: Path) -> None:
    write_phases(tmp_path, PHASES, 100.0, BEGAN)
    assert timing(tmp_path).overlap() is None


def test_units_of_earlier_runs_are_left_out(out: Path) -> None:
    unit(out, "evaluate-old", 999.0, after=-1.0)
    assert [found.seconds for found in timing(out).of_kind("evaluate")] == [30.0]


def test_a_trial_without_a_start_counts_by_when_it_was_written(out: Path) -> None:
    write_json(out / "units" / "trial-x.json", {"seconds": 7.0})
    (out / "units" / "trial-x.json").touch()
    write_phases(out, PHASES, 100.0, 0.0)
    assert [found.seconds for found in timing(out).of_kind("trial")] == [7.0]


@pytest.mark.parametrize("name", ["build-x.json", ".tmp-1-build-x.json"])
def test_broken_and_temporary_records_are_left_out(out: Path, name: str) -> None:
    (out / "units" / name).write_text("{")
    assert len(timing(out).of_kind("build")) == 2


def test_a_temporary_record_is_no_unit(out: Path) -> None:
    (out / "units" / "build-b.json").rename(out / "units" / ".tmp-1-build-b.json")
    assert len(timing(out).units) == 4


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_a_broken_record_of_phases_counts_as_none(out: Path, content: str) -> None:
    (out / "units" / "phases.json").write_text(content)
    assert read_timing(out, read_units(out)[0]) is None


def test_a_folder_without_a_record_has_no_timing(tmp_path: Path) -> None:
    assert read_timing(tmp_path, []) is None


def test_each_phase_has_its_seconds_and_its_share(out: Path) -> None:
    assert "train, build and evaluate 60.0 60% 2.0 units of work at once" in [
        " ".join(said.split()) for said in lines(out)
    ]


def test_a_kind_stands_under_its_phase_with_its_longest_unit(out: Path) -> None:
    text = lines(out)
    build = next(i for i, line in enumerate(text) if line.startswith("  build"))
    assert text[build].split() == ["build", "50.0", "2", "units,", "the", "longest:", "c", "30.0"]
    assert text.index(next(line for line in text if line.startswith("train, build"))) < build


def test_the_last_line_is_the_whole_run(out: Path) -> None:
    assert lines(out)[-1].split() == ["all", "100.0", "100%"]


def test_the_table_stays_under_20_lines_whatever_the_number_of_variants(out: Path) -> None:
    write_phases(out, {"make the data set": 9.0, "check the videos": 9.0} | PHASES, 118.0, BEGAN)
    for kind in ("train", "sweep", "trial", "finetune", "build", "evaluate", "measure", "memory"):
        for i in range(30):
            unit(out, f"{kind}-{i}", 1.0)
    assert len(lines(out)) < 20
