"""A run made by hand has the verdicts that it must have; a broken one has sentences, and no verdict it cannot carry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from support.evidence_runs import RIGHT, VARIANTS, key_of, make_run

from qray.errors import QrayError
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.judge import read_evidence

#: For what a run with something amiss says of it: FP32, a variant that is not inferior, and one that is.
FEW = {name: VARIANTS[name] for name in ("fp32", "ptq-openvino", "ptq-onnxruntime")}
FEW_RIGHT = {name: word for name, word in RIGHT.items() if name in FEW}


def few_run(folder: Path, **how: Any) -> Path:
    return make_run(folder, variants=FEW, **how)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "out")


@pytest.fixture(scope="module")
def evidence(made: Path) -> Evidence:
    return read_evidence(made)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_run(tmp_path_factory.mktemp("few") / "out")


@pytest.fixture
def out(few: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(few, tmp_path / "out"))


def of(evidence: Evidence, name: str) -> VariantEvidence:
    return next(v for v in evidence.variants if v.name == name)


def verdicts(evidence: Evidence) -> dict[str, str | None]:
    return {v.name: v.comparison.verdict for v in evidence.variants if v.comparison is not None}


def predictions(out: Path, name: str) -> Path:
    return out / "predictions" / f"variant={key_of('evaluate', name)}" / "test.parquet"


def without_variant_is_silent(evidence: Evidence) -> list[str]:
    """Finished variants that have neither a verdict nor a word on why."""
    return [
        v.name for v in evidence.variants
        if v.row.status == "ok" and v is not evidence.reference and not v.notes
        and (v.comparison is None or v.comparison.verdict is None)
    ]  # fmt: skip


def test_the_verdicts_are_the_known_ones(evidence: Evidence) -> None:
    assert verdicts(evidence) == RIGHT


def test_a_whole_run_has_nothing_to_excuse(evidence: Evidence) -> None:
    assert (evidence.notes, [v.notes for v in evidence.variants if v.notes]) == ((), [])


@pytest.mark.parametrize(("name", "right"), [("bf16-openvino", True), ("ptq-openvino", True), ("qat-inductor", False)])
def test_equivalence_is_the_known_one(evidence: Evidence, name: str, right: bool) -> None:
    comparison = of(evidence, name).comparison
    assert comparison is not None
    assert comparison.equivalent is right


def test_fp32_comes_first_and_the_rest_in_the_tables_order(evidence: Evidence) -> None:
    assert [v.name for v in evidence.variants] == list(VARIANTS)


def test_fp32_is_not_compared_with_itself(evidence: Evidence) -> None:
    assert evidence.reference is evidence.variants[0]
    assert evidence.reference.comparison is None


def test_a_variant_that_is_not_there_has_its_row_and_nothing_else(evidence: Evidence) -> None:
    gone = of(evidence, "ptq-inductor")
    assert (gone.row.status, gone.predicted, gone.accuracy, gone.comparison) == ("skipped", None, None, None)


def test_accuracy_is_scikit_learns(evidence: Evidence) -> None:
    variant = of(evidence, "ptq-onnxruntime")
    assert variant.clips is not None
    assert variant.accuracy is not None
    target, own = variant.clips["target"], variant.clips["prediction"]
    assert (variant.accuracy.mae, variant.accuracy.rmse, variant.accuracy.r2) == pytest.approx(
        (mean_absolute_error(target, own), root_mean_squared_error(target, own), r2_score(target, own))
    )


def test_the_mean_predictor_stands_apart(evidence: Evidence) -> None:
    assert evidence.baseline is not None
    assert evidence.baseline.accuracy is not None
    assert (evidence.baseline.comparison, evidence.baseline.notes) == (None, ())


def test_the_mean_predictor_has_no_slope(evidence: Evidence) -> None:
    assert evidence.baseline is not None
    assert evidence.baseline.against_label is not None
    assert evidence.baseline.against_label.slope is None


def test_trials_rejected_clips_and_times_are_there(evidence: Evidence) -> None:
    assert (len(evidence.trials), list(evidence.rejected["clip"])) == (2, ["clip-x", "clip-y"])
    assert evidence.timing is not None


def test_units_have_their_kind_and_key(evidence: Evidence) -> None:
    found = {(unit["kind"], unit["key"]) for unit in evidence.units}
    assert ("build", key_of("build", "fp32")) in found


def test_speeds_come_with_the_variants(evidence: Evidence) -> None:
    speed = of(evidence, "ptq-openvino").speed
    assert speed is not None
    assert speed.total is not None
    assert speed.total.value == pytest.approx(8.0 / 1.5, rel=0.05)


def test_reading_the_same_run_again_gives_the_same(made: Path, evidence: Evidence) -> None:
    again = read_evidence(made)
    assert [v.comparison for v in again.variants] == [v.comparison for v in evidence.variants]


def test_without_fp32_there_is_accuracy_and_no_verdict(tmp_path: Path) -> None:
    found = read_evidence(few_run(tmp_path, without=["fp32"]))
    assert (found.reference.status, verdicts(found)) == ("failed", {})
    assert of(found, "ptq-openvino").accuracy is not None
    assert any("FP32 has no predictions that can be used (not finished" in note for note in found.notes)


def test_with_an_fp32_that_failed_there_is_no_verdict(tmp_path: Path) -> None:
    change = {"fp32": {"status": "failed", "reason": "out of memory"}}
    found = read_evidence(few_run(tmp_path, change=change))
    assert verdicts(found) == {}
    assert any("out of memory" in note for note in found.notes)


@pytest.mark.parametrize(("bootstrap", "said"), [(100, True), (1000, False)])
def test_too_few_replicates_for_holm_are_said(tmp_path: Path, bootstrap: int, said: bool) -> None:
    found = read_evidence(make_run(tmp_path, verdict={"bootstrap": bootstrap}))
    assert any("raise verdict.bootstrap" in note for note in found.notes) is said


def test_the_table_is_not_read(out: Path) -> None:
    """It is made from what the units left, and anew where it is damaged or somebody changed it."""
    (out / "results.parquet").write_bytes(b"damaged")
    assert verdicts(read_evidence(out)) == FEW_RIGHT


def test_the_sensitivity_is_that_of_the_index(tmp_path: Path) -> None:
    units = {"sensitivity-abc": {"started": 3.0, "mark": "own"}, "sensitivity-other": {"started": 9.0, "mark": "other"}}
    found = read_evidence(few_run(tmp_path, clips=20, units=units)).sensitivity
    assert found is not None
    assert found["mark"] == "own"


@pytest.mark.parametrize(("name", "text", "words"), [
    ("study.yaml", None, "study.yaml is missing"),
    ("study.yaml", "name: [", "not valid YAML"),
    ("study.yaml", "name: x\nvariants: 3\n", "variants"),
    ("run.json", None, "no such file"),
    ("run.json", "{", "not readable as the index of a run"),
    ("run.json", "[]", "not readable as the index of a run"),
    ("run.json", '{"format": 1}', "format 1, this qray reads format 3"),
])  # fmt: skip
def test_a_run_without_its_study_or_index_is_refused_and_says_why(
    out: Path, name: str, text: str | None, words: str
) -> None:
    (out / name).unlink()
    if text is not None:
        (out / name).write_text(text)
    with pytest.raises(QrayError, match=words):
        read_evidence(out)


def test_a_study_that_was_changed_after_the_run_is_noticed(out: Path) -> None:
    text = (out / "study.yaml").read_text()
    (out / "study.yaml").write_text(text.replace("  margin: 1.0", "  margin: 0.25"))
    assert any("study.yaml was changed after the run (margin 1, now 0.25)" in note for note in read_evidence(out).notes)


def test_a_study_and_an_index_of_two_runs_are_refused(out: Path, tmp_path: Path) -> None:
    other = {name: VARIANTS[name] for name in ("fp32", "ptq-openvino")}
    shutil.copy(make_run(tmp_path / "other", variants=other) / "study.yaml", out / "study.yaml")
    with pytest.raises(QrayError, match="of two runs"):
        read_evidence(out)


def test_a_record_that_leads_out_of_the_run_is_not_followed(out: Path) -> None:
    path = out / "units" / f"evaluate-{key_of('evaluate', 'ptq-openvino')}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": ["../../secret.parquet"]}))
    assert "leads out of" in of(read_evidence(out), "ptq-openvino").notes[0]


def test_a_record_that_makes_no_sense_costs_its_variant_alone(out: Path) -> None:
    path = out / "units" / f"build-{key_of('build', 'ptq-openvino')}.json"
    path.write_text('{"artifact": 3}')
    found = read_evidence(out)
    assert "not finished" in str(of(found, "ptq-openvino").reason)
    assert "1 records in units/ cannot be read, or are none; run again with --fresh" in found.notes
    assert verdicts(found) == {name: word for name, word in FEW_RIGHT.items() if name != "ptq-openvino"}


def test_one_clip_has_no_verdict(tmp_path: Path) -> None:
    found = read_evidence(few_run(tmp_path, clips=1))
    assert set(verdicts(found).values()) == {None}
    assert any("1 clip in TEST" in note for note in found.notes)
    assert without_variant_is_silent(found) == []


def test_few_clips_have_no_verdict(tmp_path: Path) -> None:
    change = {name: {"sd": 0.1} for name in FEW}
    found = read_evidence(few_run(tmp_path, clips=6, change=change))
    assert set(verdicts(found).values()) == {None}
    assert without_variant_is_silent(found) == []


def test_a_variant_with_predictions_that_are_no_numbers_has_no_verdict(tmp_path: Path) -> None:
    found = read_evidence(few_run(tmp_path, nan={"ptq-openvino": 3}))
    assert "ptq-openvino" not in verdicts(found)
    assert "3 of 200 predictions are not finite" in of(found, "ptq-openvino").row.reason or ""


def test_an_fp32_of_nothing_but_nan_gives_no_verdict(tmp_path: Path) -> None:
    found = read_evidence(few_run(tmp_path, nan={"fp32": 200}))
    assert verdicts(found) == {}
    assert any("FP32 has no predictions" in note for note in found.notes)


def test_clips_that_fp32_could_not_read_are_left_out_of_all(tmp_path: Path) -> None:
    found = read_evidence(few_run(tmp_path, nan=dict.fromkeys(FEW, 4)))
    assert {v.accuracy.n_clips for v in found.variants if v.accuracy} == {196}


def test_a_variant_that_is_constant_is_inferior_and_says_why(tmp_path: Path) -> None:
    found = of(read_evidence(few_run(tmp_path, constant=["ptq-openvino"])), "ptq-openvino")
    assert found.comparison is not None
    assert found.comparison.verdict == "inferior"
    assert "predicts 50 for every clip" in found.notes[0]


def test_nothing_is_non_inferior_to_an_fp32_that_is_constant(tmp_path: Path) -> None:
    found = read_evidence(few_run(tmp_path, constant=["fp32"]))
    assert set(verdicts(found).values()) == {None}
    assert any("mean predictor" in note for note in found.notes)


def test_predictions_that_are_gone_are_a_note(out: Path) -> None:
    predictions(out, "ptq-openvino").unlink()
    variant = of(read_evidence(out), "ptq-openvino")
    assert variant.accuracy is None
    assert "is missing" in variant.notes[0]


@pytest.mark.parametrize("content", [b"", b"no parquet", b"PAR1PAR1"])
def test_damaged_predictions_are_a_note(out: Path, content: bytes) -> None:
    predictions(out, "ptq-openvino").write_bytes(content)
    found = read_evidence(out)
    assert "cannot be read" in of(found, "ptq-openvino").notes[0]
    assert verdicts(found) == {name: word for name, word in FEW_RIGHT.items() if name != "ptq-openvino"}


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (pd.DataFrame({"clip": ["a"], "target": [1.0]}), "has no column prediction"),
        (pd.DataFrame({"clip": ["a", "a"], "target": [1.0, 1.0], "prediction": [1.0, 1.0]}), "names clips twice"),
        (pd.DataFrame({"clip": ["a"], "target": [np.nan], "prediction": [1.0]}), "targets that are not finite"),
        (pd.DataFrame({"clip": ["a"], "target": ["1"], "prediction": [1.0]}), "are no numbers"),
        (pd.DataFrame({"clip": ["zz"], "target": [1.0], "prediction": [1.0]}), "FP32 predicted none of its clips"),
    ],
)
def test_predictions_that_make_no_sense_are_a_note(out: Path, frame: pd.DataFrame, words: str) -> None:
    frame.to_parquet(predictions(out, "ptq-openvino"))
    assert words in of(read_evidence(out), "ptq-openvino").notes[0]


def test_broken_records_are_counted(out: Path) -> None:
    (out / "units" / "build-broken.json").write_text("{")
    (out / "units" / "build-list.json").write_text("[]")
    assert any(note.startswith("2 records in units/") for note in read_evidence(out).notes)


def test_a_measurement_that_makes_no_sense_leaves_no_speed(out: Path) -> None:
    path = next((out / "units").glob("measure-*.json"))
    path.write_text(json.dumps({"latency": {key_of("build", "fp32"): {"blocks_ms": "x"}}, "started": 1.0}))
    assert of(read_evidence(out), "ptq-openvino").speed is None


@pytest.mark.parametrize("content", [None, b"no parquet"])
def test_rejected_clips_that_cannot_be_read_are_a_note(out: Path, content: bytes | None) -> None:
    (out / "rejected.parquet").unlink()
    if content is not None:
        (out / "rejected.parquet").write_bytes(content)
    found = read_evidence(out)
    assert (len(found.rejected), list(found.rejected.columns)) == (0, ["row", "clip", "reason"])
    assert "rejected.parquet" in found.notes[0]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QrayError, match="no such folder"):
        read_evidence(tmp_path / "nowhere")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QrayError, match="not the output of a run"):
        read_evidence(tmp_path)


def test_thresholds_are_the_studys(tmp_path: Path) -> None:
    found = read_evidence(few_run(tmp_path, verdict={"thresholds": [40.0]}))
    assert [r.threshold for r in of(found, "ptq-openvino").reclassified] == [40.0]
