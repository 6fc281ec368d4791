"""What a study of an imported model comes to: its weights as they are, and no training of what cannot be trained."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from support.graphs import keys_of, manifest_of, only

from qray.study import Imported, Study
from qray.units.build import Build
from qray.units.plan import study_units
from qray.units.train import AsImported, Train

MANIFEST = manifest_of({"TRAIN": 40, "VAL": 12, "TEST": 12})


def _study(source: str = "torchvision/r3d_18", folder: str = "/models/a", **more: Any) -> Study:
    graph = {"network_sha256": "1" * 64} if "/" not in source else {}
    model = {"folder": folder, "source": source, "input": {"layout": "BCTHW"}, "weights_sha256": "0" * 64, **graph}
    variants = [
        {"name": "fp32", "method": "fp32", "engine": "eager"},
        {"name": "ptq-openvino", "method": "ptq", "engine": "openvino"},
        {"name": "qat", "method": "qat", "engine": "inductor"},
        {"name": "finetune", "method": "finetune", "engine": "eager"},
    ]
    given = {"name": "theirs", "model": model, "variants": variants, "sweep": {"trials": 1, "weight_bits": [8]}}
    return Study.model_validate(given | more)


def test_weights_stay_as_they_are_unless_the_study_gives_epochs() -> None:
    study = _study()
    assert isinstance(study.model, Imported)
    assert study.training is None
    assert isinstance(only(study_units(study, MANIFEST), "train").task, AsImported)
    trained = only(study_units(_study(training={"epochs": 2}), MANIFEST), "train")
    assert isinstance(trained.task, Train)


def test_a_graph_for_inference_has_no_qat_and_its_rows_say_why() -> None:
    graph = study_units(_study("onnx"), MANIFEST)
    assert graph.one("sweep") is None
    builds = graph.of("build")
    tasks = {name: builds[name].task for name in builds}
    assert all(isinstance(task, Build) for task in tasks.values())
    for name in ("qat", "finetune"):
        assert "imported as onnx, a graph for inference" in str(tasks[name].impossible())
    assert "graph for inference" not in str(tasks["ptq-openvino"].impossible())


def test_keys_follow_the_weights_and_the_input_and_not_the_folder() -> None:
    here = keys_of(study_units(_study(), MANIFEST))
    assert keys_of(study_units(_study(folder="/models/b"), MANIFEST)) == here
    study = _study()
    assert isinstance(study.model, Imported)
    for change in ({"weights_sha256": "2" * 64}, {"scale": 2.0}):
        other = study.model_copy(update={"model": study.model.model_copy(update=change)})
        assert only(study_units(other, MANIFEST), "train").key != only(study_units(study, MANIFEST), "train").key


def test_what_was_resolved_is_read_back(tmp_path: Any) -> None:
    from qray.study_files import dump_study, parse_study

    study = _study("pt2")
    assert parse_study(dump_study(study), "study.yaml") == study


@pytest.mark.parametrize("model", [{"folder": "m"}, {"folder": "m", "source": "somewhere"}])
def test_a_description_that_is_none_is_refused(model: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        _study(model=model)
