"""From a run's units over run.json to rows: what is finished has figures, what is not a reason, and no Ray."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.graphs import only, sweep_of

from qray.atomic import write_json, write_text
from qray.commands import write_table_anew
from qray.data.manifest import Manifest, read_manifest
from qray.engines import registry
from qray.engines.artifact import BuildRequest
from qray.engines.registry import build_artifact
from qray.errors import QrayError
from qray.graph.runner import lacking
from qray.graph.store import Store
from qray.graph.unit import Graph, Result, Unit
from qray.judge.index import read_index
from qray.judge.judge import read_evidence
from qray.judge.outcome import Outcome, outcomes_of
from qray.judge.row import Row
from qray.judge.run import read_run
from qray.judge.table import write_table
from qray.measure.isa import this_machine
from qray.model.regressor import build_regressor
from qray.point import Point
from qray.study import Study
from qray.study_files import dump_study
from qray.units.data_set import load_manifest
from qray.units.plan import study_units, units_of_stage
from qray.units.recorder import Recorder
from qray.words.show import read_results

AT = Point(threads=1, batch=1)
#: Who made what is finished; not who writes the table.
OLD = {"versions": {"torch": "1.0", "qray": "0.0.1"}, "host": "old host", "cpu_flags": "avx2"}


@pytest.fixture(scope="module")
def study(tiny_dataset: Path) -> Study:
    return Study.model_validate(
        {
            "name": "s",
            "data": {"dir": str(tiny_dataset)},
            "clip": {"frames": 4, "image_size": 32},
            "model": {"width": 4},
            "variants": [
                {"name": "int8", "method": "ptq", "engine": "onnxruntime"},
                {"name": "fp32", "method": "fp32", "engine": "eager"},
                {"name": "qat", "method": "qat", "engine": "inductor"},
            ],
            "sweep": {"trials": 2, "weight_bits": [8], "epochs": [2]},
            "verdict": {"bootstrap": 200},
        }
    )


@dataclass(frozen=True)
class Planned:
    """A study's units, by what they are called here."""

    study: Study
    manifest: Manifest
    graph: Graph

    @property
    def build(self) -> dict[str, str]:
        return {name: unit.key for name, unit in self.graph.of("build").items()}

    @property
    def evaluate(self) -> dict[str, str]:
        return {name: unit.key for name, unit in self.graph.of("evaluate").items()}

    @property
    def trials(self) -> tuple[dict[str, Any], ...]:
        return sweep_of(self.graph).trials

    def memory(self, name: str) -> Unit:
        return self.graph.of("memory")[f"{name}, {AT}"]


@pytest.fixture(scope="module")
def plan(study: Study, tiny_dataset: Path) -> Planned:
    manifest = read_manifest(tiny_dataset, study.data)
    return Planned(study, manifest, study_units(study, manifest))


def ran(store: Store, plan: Planned, results: dict[str, Result] | None = None) -> None:
    """Leave what a run leaves of itself."""
    Recorder(store, plan.study, plan.graph, "all", 0.0, this_machine(), results or {}).write()


@pytest.fixture(scope="module")
def finished(study: Study, plan: Planned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OUT in which fp32 is built and evaluated, the baseline predicted, and two trials trained for an epoch."""
    store, key = Store(tmp_path_factory.mktemp("run") / "out"), plan.build["fp32"]
    model = build_regressor(study.model, 55.0, 12.0, seed=0).eval()
    request = BuildRequest(variant=study.reference, model=model, clip=study.clip)
    artifact = build_artifact(request, key, store.artifact_folder(key))
    files = [store.relative(path) for path in artifact.folder.iterdir()]
    store.put("train", only(plan.graph, "train").key, {"train_s": 30.0, **OLD})
    made = {"artifact": artifact.facts, "files": files, "label": "build fp32", "started": 0.0, "seconds": 2.0}
    store.put("build", key, made | OLD)
    test = plan.manifest.split("TEST")
    for unit, offset in ((plan.evaluate["fp32"], 1.0), (plan.evaluate["mean-predictor"], 5.0)):
        path = store.save_predictions(unit, "TEST", test, test["target"].to_numpy() + offset, 0)
        store.put("evaluate", unit, {"files": [store.relative(path)], "started": 0.0, "seconds": 3.0, **OLD})
    for trial, val_mae in zip(plan.trials, (4.5, 6.5), strict=True):
        put_trial(store, trial, 1, {"status": "ok", "reason": None, "val_mae": val_mae, "train_s": 9.0, **OLD})
    load_manifest(store, Path(str(study.data.dir)), study.data)
    write_text(store.out / "study.yaml", dump_study(study))
    ran(store, plan)
    return store.out


def put_trial(store: Store, trial: dict[str, Any], epoch: int, record: dict[str, Any]) -> None:
    """What a trial leaves after an epoch."""
    key = trial["keys"][epoch - 1]
    store.put("trial", key, {"key": key, "settings": trial["settings"]} | record)


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Store:
    shutil.copytree(finished, tmp_path / "out")
    return Store(tmp_path / "out")


def outcomes(store: Store, plan: Planned, results: dict[str, Result] | None = None) -> dict[str, Outcome]:
    ran(store, plan, results)
    return {outcome.variant: outcome for outcome in outcomes_of(read_run(store.out))}


def table(store: Store, plan: Planned, results: dict[str, Result] | None = None) -> list[Row]:
    ran(store, plan, results)
    return read_evidence(store.out).rows


def test_the_reference_comes_first_wherever_the_study_lists_it(store: Store, plan: Planned) -> None:
    assert next(iter(outcomes(store, plan))) == "fp32"


def test_a_finished_variant_has_its_own_predictions(store: Store, plan: Planned) -> None:
    found = outcomes(store, plan)["fp32"].predictions
    assert found is not None
    assert np.allclose(found["prediction"] - found["target"], 1.0)


@pytest.mark.parametrize("name", ["fp32", "mean-predictor"])
def test_a_finished_variant_names_its_predictions(store: Store, plan: Planned, name: str) -> None:
    path = outcomes(store, plan)[name].predictions_path
    assert path is not None
    assert (store.out / path).is_file()


def test_a_variant_without_predictions_names_none(store: Store, plan: Planned) -> None:
    assert outcomes(store, plan)["int8"].predictions_path is None


def test_a_finished_variant_has_the_size_of_its_files(store: Store, plan: Planned) -> None:
    found = outcomes(store, plan)["fp32"]
    assert found.size_bytes == (store.artifact_folder(plan.build["fp32"]) / "model.pt2").stat().st_size


def test_the_baseline_has_its_own_predictions(store: Store, plan: Planned) -> None:
    assert outcomes(store, plan)["mean-predictor"].predictions is not None


def test_a_variant_that_was_not_built_says_that_it_is_not_finished(store: Store, plan: Planned) -> None:
    found = outcomes(store, plan)["int8"]
    assert (found.status, found.reason, found.size_bytes) == (
        "failed", "not finished; run the same command again", None
    )  # fmt: skip


def test_the_machine_that_writes_the_table_decides_nothing(
    store: Store, plan: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether an engine is missing is what the run says, on the machine where it ran."""
    monkeypatch.setattr(registry, "missing_requirement", lambda variant, isa: "no such engine here")
    assert outcomes(store, plan)["int8"].status == "failed"
    skipped = {plan.build["int8"]: Result("skipped", reason="no such engine there")}
    found = outcomes(store, plan, skipped)["int8"]
    assert (found.status, found.reason) == ("skipped", "no such engine there")


def test_a_failed_build_keeps_the_reason_of_the_run(store: Store, plan: Planned) -> None:
    ended = {plan.build["int8"]: Result("failed", reason="the compiler said no")}
    found = outcomes(store, plan, ended)["int8"]
    assert (found.status, found.reason) == ("failed", "the compiler said no")


def test_a_variant_whose_evaluation_failed_has_a_size_and_no_accuracy(store: Store, plan: Planned) -> None:
    store.unit_path("evaluate", plan.evaluate["fp32"]).unlink()
    ended = {plan.evaluate["fp32"]: Result("failed", reason="out of memory")}
    found = outcomes(store, plan, ended)["fp32"]
    assert (found.status, found.reason) == ("failed", "out of memory")
    assert (found.size_bytes is not None, found.predictions) == (True, None)


def test_an_artifact_that_was_moved_away_keeps_what_is_known_of_it(store: Store, plan: Planned) -> None:
    """A run is judged without its artifacts, as where it was copied to be looked at; that they are gone, pick says."""
    size = outcomes(store, plan)["fp32"].size_bytes
    shutil.rmtree(store.out / "artifacts")
    found = {outcome.variant: outcome for outcome in outcomes_of(read_run(store.out))}["fp32"]
    assert (found.status, found.size_bytes) == ("ok", size)


def trials(store: Store, plan: Planned) -> list[tuple[str, str | None, float | None]]:
    found = [outcome for outcome in outcomes(store, plan).values() if outcome.stage == "trial"]
    return [(outcome.status, outcome.reason, outcome.val_mae) for outcome in found]


CUT = ("ok", "stopped after epoch 1 of 2", 6.5)


def test_a_trial_that_was_cut_says_where(store: Store, plan: Planned) -> None:
    unfinished = "the trial did not finish: not finished; run the same command again"
    assert trials(store, plan) == [("failed", unfinished, 4.5), CUT]


def test_a_whole_trial_has_the_val_mae_of_its_last_epoch(store: Store, plan: Planned) -> None:
    put_trial(store, plan.trials[0], 2, {"status": "ok", "reason": None, "val_mae": 4.0, "train_s": 18.0})
    assert trials(store, plan) == [("ok", None, 4.0), CUT]


def test_a_trial_that_diverged_keeps_its_reason(store: Store, plan: Planned) -> None:
    put_trial(store, plan.trials[0], 2, {"status": "failed", "reason": "the loss became nan", "val_mae": None})
    assert trials(store, plan)[0] == ("failed", "the loss became nan", None)


def latency_key(store: Store, plan: Planned) -> str:
    return store.key(only(plan.graph, "measure"))


def measured(store: Store, plan: Planned, error: str | None = None) -> None:
    """A latency measurement of fp32 and of another artifact, which may have failed."""
    fp32 = {"blocks_ms": [[2.0] * 40], "host": "new host", "cpu_flags": "avx2 vnni", "error": None}
    record = {"latency": {plan.build["fp32"]: fp32, "other": fp32 | {"error": error}}, "host": "new host"}
    unfinished = {"unfinished": f"latency not measured of other: {error}"} if error else {}
    store.put("measure", latency_key(store, plan), record | unfinished | {"versions": {"torch": "2.0"}})


def fp32_row(store: Store, plan: Planned, results: dict[str, Result] | None = None) -> Row:
    (row,) = [r for r in table(store, plan, results) if r.variant == "fp32"]
    return row


def missing(store: Store, plan: Planned) -> list[Unit]:
    """Units that the next `qray run all` tries, of those whose needs are there."""
    wanted = lacking(plan.graph, units_of_stage(plan.graph, "all"), store)
    return [unit for unit in wanted if all(map(store.finished, unit.needs))]


def test_latency_and_memory_of_the_same_point_meet_in_one_row(store: Store, plan: Planned) -> None:
    measured(store, plan)
    store.put("memory", plan.memory("fp32").key, {"peak_rss_mb": 321.0})
    row = fp32_row(store, plan)
    assert (row.latency_p50_ms, row.peak_rss_mb) == (2.0, 321.0)


def test_memory_that_could_not_be_measured_is_null_and_says_why_until_it_is(store: Store, plan: Planned) -> None:
    unit = plan.memory("fp32")
    row = fp32_row(store, plan, {unit.key: Result("failed", reason="killed")})
    assert row.peak_rss_mb is None
    assert "memory not measured: killed" in row.reason
    assert unit in missing(store, plan)
    store.put("memory", unit.key, {"peak_rss_mb": 321.0})
    assert "memory" not in (fp32_row(store, plan).reason or "")
    assert unit not in missing(store, plan)


def test_a_measurement_in_which_one_artifact_failed_is_shown_and_tried_again(store: Store, plan: Planned) -> None:
    for name in ("int8", "qat"):
        ran(store, plan, {plan.build[name]: Result("failed", reason="not to be had")})
    measured(store, plan, error="out of memory")
    assert fp32_row(store, plan).latency_p50_ms == 2.0
    unit = only(plan.graph, "measure")
    assert not store.finished(unit)
    measured(store, plan)
    assert store.finished(unit)


def test_an_artifact_whose_latency_failed_says_why(store: Store, plan: Planned) -> None:
    record = {"latency": {plan.build["fp32"]: {"blocks_ms": [], "host": "h", "error": "it crashed"}}}
    store.put("measure", latency_key(store, plan), record | {"unfinished": "latency not measured of fp32"})
    row = fp32_row(store, plan)
    assert (row.status, row.latency_p50_ms) == ("ok", None)
    assert "latency not measured: it crashed" in row.reason


def test_a_measurement_that_failed_as_a_whole_is_the_reason_of_each_row(store: Store, plan: Planned) -> None:
    failed = {latency_key(store, plan): Result("failed", reason="took longer than 60 s"),
              plan.memory("fp32").key: Result("failed", reason="the node died")}  # fmt: skip
    reason = "latency not measured: took longer than 60 s; memory not measured: the node died"
    assert reason in fp32_row(store, plan, failed).reason


def test_what_made_a_row_is_what_its_units_say(store: Store, plan: Planned) -> None:
    row = fp32_row(store, plan)
    made = json.loads(row.versions), row.host, row.cpu_flags, row.made_elsewhere
    assert made == (OLD["versions"], "old host", "avx2", None)


def test_a_row_names_the_unit_that_was_made_elsewhere(store: Store, plan: Planned) -> None:
    measured(store, plan)
    row = fp32_row(store, plan)
    assert (json.loads(row.versions), row.host) == (OLD["versions"], "new host")
    elsewhere = json.loads(row.made_elsewhere)
    assert elsewhere["latency"] == {"versions": {"torch": "2.0"}}
    assert elsewhere["build"] == {"host": "old host", "cpu_flags": "avx2"}


def test_a_row_that_nothing_was_made_of_has_the_versions_of_the_run_that_tried(store: Store, plan: Planned) -> None:
    ended = {plan.build["int8"]: Result("failed", OLD, "the compiler said no")}
    (row,) = [r for r in table(store, plan, ended) if r.variant == "int8"]
    assert (row.reason, json.loads(row.versions)) == ("the compiler said no", OLD["versions"])


def test_what_ended_in_an_earlier_run_is_kept_until_it_is_tried_again(store: Store, plan: Planned) -> None:
    int8, qat = plan.build["int8"], plan.build["qat"]
    ran(store, plan, {int8: Result("failed", reason="a"), qat: Result("skipped", reason="b")})
    ran(store, plan, {int8: Result("ok", {"seconds": 1.0})})
    ended = read_index(store.out).ended
    assert {key: (end.status, end.reason) for key, end in ended.items()} == {qat: ("skipped", "b")}


def test_the_table_on_disk_is_the_table_returned(store: Store) -> None:
    assert write_table(read_evidence(store.out)) == read_results(store.out)


def test_the_table_is_a_function_of_the_folder_alone(
    store: Store, plan: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied elsewhere, without its data set, from another working directory: the same table, and nothing made."""
    ran(store, plan, {plan.build["int8"]: Result("failed", reason="the compiler said no")})
    here = write_table(read_evidence(store.out))
    copy, work = Path(shutil.copytree(store.out, tmp_path / "copy")), tmp_path / "work"
    text = (copy / "study.yaml").read_text(encoding="utf-8")
    write_text(copy / "study.yaml", text.replace(str(plan.study.data.dir), "/gone/with/the/data"))
    (copy / "results.parquet").unlink()
    work.mkdir()
    monkeypatch.chdir(work)
    write_table_anew(copy, None, as_json=False)
    assert read_results(copy) == here
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(("lost", "sentence"), [
    ("study.yaml", r"not the output of a run \(study.yaml is missing\)"),
    ("run.json", "run.json: no such file, so .* is not the output of a run"),
])  # fmt: skip
def test_a_folder_of_no_run_ends_in_a_sentence(store: Store, lost: str, sentence: str) -> None:
    (store.out / lost).unlink()
    with pytest.raises(QrayError, match=sentence):
        write_table_anew(store.out, None, as_json=False)


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(QrayError, match="no such folder; name the output folder of a run"):
        write_table_anew(tmp_path / "nowhere", None, as_json=False)
    assert not (tmp_path / "nowhere").exists()


def test_records_of_other_studies_do_not_disturb(store: Store, plan: Planned) -> None:
    write_json(store.out / "units" / "build-0000000000000000.json", {"files": [], "seconds": 1.0})
    assert len(table(store, plan)) == 3 + 1 + 2
