"""From OUT to outcomes: what is finished is a row with figures, what is not is a row with a reason, and no Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from qray.atomic import write_json
from qray.data.manifest import read_manifest
from qray.model.regressor import build_regressor
from qray.orchestrate import collect as module
from qray.orchestrate.collect import collect, write_table
from qray.orchestrate.measuring import latency_key, memory_key
from qray.orchestrate.plan import Plan, make_plan
from qray.orchestrate.run import run_study
from qray.orchestrate.steps import Result
from qray.orchestrate.store import Store
from qray.results.show import read_results
from qray.results.table import Outcome
from qray.study import Study
from qray.variants.artifact import BuildRequest
from qray.variants.registry import build_artifact

AT = (1, 1)


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
            "sweep": {"trials": 2, "weight_bits": [8]},
            "verdict": {"bootstrap": 200},
        }
    )


@pytest.fixture(scope="module")
def plan(study: Study, tiny_dataset: Path) -> Plan:
    return make_plan(study, read_manifest(tiny_dataset, study.data))


@pytest.fixture(scope="module")
def finished(study: Study, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OUT in which fp32 is built and evaluated, the baseline predicted, and one of two trials ended."""
    store, key = Store(tmp_path_factory.mktemp("run") / "out"), plan.build["fp32"]
    model = build_regressor(study.model, 55.0, 12.0, seed=0).eval()
    request = BuildRequest(variant=study.reference, model=model, clip=study.clip)
    artifact = build_artifact(request, key, store.artifact_folder(key))
    files = [store.relative(path) for path in artifact.folder.iterdir()]
    store.put("build", key, {"files": files, "label": "build fp32", "started": 0.0, "seconds": 2.0})
    test = plan.manifest.split("TEST")
    for unit, offset in ((plan.evaluate["fp32"], 1.0), (plan.baseline_key(), 5.0)):
        store.save_predictions(unit, "TEST", test, test["target"].to_numpy() + offset, 0)
    store.put("evaluate", plan.evaluate["fp32"], {"seconds": 3.0})
    trial = plan.trials[0]
    store.put("trial", trial["key"], {"status": "ok", "reason": None, "val_mae": 4.5, "seconds": 9.0})
    return store.out


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Store:
    shutil.copytree(finished, tmp_path / "out")
    return Store(tmp_path / "out")


def outcomes(store: Store, plan: Plan, results: dict[str, Result] | None = None) -> dict[str, Outcome]:
    return {outcome.variant: outcome for outcome in collect(store, plan, results or {})}


def test_the_reference_comes_first_wherever_the_study_lists_it(store: Store, plan: Plan) -> None:
    assert next(iter(outcomes(store, plan))) == "fp32"


def test_a_finished_variant_has_its_own_predictions(store: Store, plan: Plan) -> None:
    found = outcomes(store, plan)["fp32"].predictions
    assert found is not None
    assert np.allclose(found["prediction"] - found["target"], 1.0)


@pytest.mark.parametrize("name", ["fp32", "mean-predictor"])
def test_a_finished_variant_names_its_predictions(store: Store, plan: Plan, name: str) -> None:
    path = outcomes(store, plan)[name].predictions_path
    assert path is not None
    assert (store.out / path).is_file()


def test_a_variant_without_predictions_names_none(store: Store, plan: Plan) -> None:
    assert outcomes(store, plan)["int8"].predictions_path is None


def test_a_finished_variant_has_the_size_of_its_files(store: Store, plan: Plan) -> None:
    found = outcomes(store, plan)["fp32"]
    assert found.size_bytes == (store.artifact_folder(plan.build["fp32"]) / "model.pt2").stat().st_size


def test_the_baseline_has_its_own_predictions(store: Store, plan: Plan) -> None:
    assert outcomes(store, plan)["mean-predictor"].predictions is not None


def test_a_variant_that_was_not_built_says_that_it_is_not_finished(store: Store, plan: Plan) -> None:
    found = outcomes(store, plan)["int8"]
    assert (found.status, found.reason, found.size_bytes) == (
        "failed", "not finished; run the same command again", None
    )  # fmt: skip


def test_a_variant_that_cannot_be_built_here_is_skipped(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "missing_requirement", lambda variant, isa: "no such engine here")
    found = outcomes(store, plan)["int8"]
    assert (found.status, found.reason) == ("skipped", "no such engine here")


def test_a_variant_built_elsewhere_keeps_its_row_where_its_engine_is_missing(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "missing_requirement", lambda variant, isa: "no such engine here")
    assert outcomes(store, plan)["fp32"].status == "ok"


def test_a_failed_build_keeps_the_reason_of_the_run(store: Store, plan: Plan) -> None:
    ended = {plan.build["int8"]: Result("failed", reason="the compiler said no")}
    found = outcomes(store, plan, ended)["int8"]
    assert (found.status, found.reason) == ("failed", "the compiler said no")


def test_a_variant_whose_evaluation_failed_has_a_size_and_no_accuracy(store: Store, plan: Plan) -> None:
    shutil.rmtree(store.out / "predictions" / f"variant={plan.evaluate['fp32']}")
    store.unit_path("evaluate", plan.evaluate["fp32"]).unlink()
    ended = {plan.evaluate["fp32"]: Result("failed", reason="out of memory")}
    found = outcomes(store, plan, ended)["fp32"]
    assert (found.status, found.reason) == ("failed", "out of memory")
    assert (found.size_bytes is not None, found.predictions) == (True, None)


def test_an_artifact_whose_model_is_gone_is_not_finished(store: Store, plan: Plan) -> None:
    (store.artifact_folder(plan.build["fp32"]) / "model.pt2").unlink()
    found = outcomes(store, plan)["fp32"]
    assert (found.status, found.size_bytes) == ("failed", None)


def test_a_trial_that_ended_has_its_val_mae(store: Store, plan: Plan) -> None:
    found = [outcome for outcome in collect(store, plan, {}) if outcome.stage == "trial"]
    assert [(outcome.status, outcome.val_mae) for outcome in found] == [("ok", 4.5), ("failed", None)]


def test_latency_and_memory_of_the_same_point_meet_in_one_row(store: Store, plan: Plan) -> None:
    key = plan.build["fp32"]
    record = {"latency": {key: {"blocks_ms": [[2.0] * 40], "host": "h"}}, "host": "h", "seconds": 1.0}
    store.put("measure", latency_key(store, plan, AT), record)
    store.put("memory", memory_key(key, AT), {"peak_rss_mb": 321.0})
    table = write_table(store, plan, {}).to_pylist()
    assert [(r["latency_p50_ms"], r["peak_rss_mb"]) for r in table if r["variant"] == "fp32"] == [(2.0, 321.0)]


def test_memory_that_could_not_be_measured_is_null(store: Store, plan: Plan) -> None:
    store.put("memory", memory_key(plan.build["fp32"], AT), {"peak_rss_mb": None, "error": "killed"})
    assert outcomes(store, plan)["fp32"].peak_rss_mb == {}


def test_the_table_on_disk_is_the_table_returned(store: Store, plan: Plan) -> None:
    assert write_table(store, plan, {}) == read_results(store.out)


def test_the_table_can_be_written_anew_without_ray(store: Store, study: Study) -> None:
    result = run_study(study, store, "table", Console(quiet=True))
    assert "start Ray" not in result.phases
    assert (store.out / "results.parquet").is_file()


def test_records_of_other_studies_do_not_disturb(store: Store, plan: Plan) -> None:
    write_json(store.out / "units" / "build-0000000000000000.json", {"files": [], "seconds": 1.0})
    assert len(collect(store, plan, {})) == 3 + 1 + 2
