"""Change any one field of a study, and exactly the units whose outcome depends on it get other keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from support.graphs import keys_of, manifest_of

from qray.measure.isa import Machine
from qray.study import Study
from qray.units.plan import study_units

STUDY: dict[str, Any] = {
    "name": "s",
    "variants": [
        {"name": "fp32", "method": "fp32", "engine": "eager"},
        {"name": "dynamic", "method": "dynamic", "engine": "eager"},
        {"name": "ptq", "method": "ptq", "engine": "onnxruntime"},
        {"name": "qat", "method": "qat", "engine": "inductor"},
        {"name": "control", "method": "finetune", "engine": "eager"},
    ],
    "sweep": {"trials": 2, "weight_bits": [8], "epochs": [2], "lr": [1e-4, 2e-4, 3e-4]},
    "sensitivity": {},
}
MACHINE = Machine("avx2", bf16=False)

PTQ, QAT, CONTROL = ({f"{kind} {name}" for kind in ("build", "evaluate")} for name in ("ptq", "qat", "control"))
OF_SWEEP = {"sweep qat", "finetune w8"} | QAT | CONTROL
OF_TRIALS = {"trial 0", "trial 1"} | OF_SWEEP
EVALUATIONS = {f"evaluate {variant['name']}" for variant in STUDY["variants"]}
BUILDS = {f"build {variant['name']}" for variant in STUDY["variants"]}
COSTS, LAYERS = "costs a clip", "sensitivity layers"
TRAINED = {"train fp32", COSTS, LAYERS} | OF_TRIALS | BUILDS | EVALUATIONS

COUNTS, SEEDS, SHARES = st.integers(1, 500), st.integers(0, 10**6), st.floats(0.01, 0.99)
WORDS, POSITIVE = st.sampled_from(["alpha", "beta"]), st.floats(0.01, 100)
#: Other values of each field, and the units whose outcome depends on it. What trials are drawn from must change each of
#: them to be seen, so its values are new ones.
FIELDS: dict[str, tuple[st.SearchStrategy[Any], set[str]]] = {
    "name": (WORDS, set()),
    "seed": (SEEDS, TRAINED),
    # What the data set is decides through the manifest, whose digests are in the keys.
    **{f"data.{name}": (WORDS, set()) for name in (
        "dir", "file_list", "videos", "file_column", "target_column", "split_column", "group_column"
    )},
    **{f"data.synthetic.{name}": (COUNTS, set()) for name in ("train", "val", "test", "seed")},
    "data.split_fractions": (st.just((0.5, 0.25, 0.25)), set()),
    "data.split_seed": (SEEDS, set()),
    "data.follow_links": (st.booleans(), set()),
    "data.max_rejected": (SHARES, set()),
    "clip.frames": (COUNTS, TRAINED),
    "clip.image_size": (st.integers(16, 200), TRAINED),
    "clip.sampling": (st.just("uniform"), TRAINED),
    "clip.stride": (COUNTS, TRAINED),
    "clip.eval_windows": (COUNTS, EVALUATIONS),
    "model.width": (st.integers(4, 128), TRAINED),
    "model.pooling": (st.sampled_from(["mean", "max_min"]), TRAINED),
    "model.weights": (st.just("imagenet"), TRAINED),
    "model.head_init": (st.just("zero"), TRAINED),
    "model.standardize_target": (st.just(False), TRAINED),
    "training.epochs": (COUNTS, TRAINED),
    "training.batch_size": (COUNTS, TRAINED),
    "training.optimizer": (st.just("adam"), TRAINED),
    **{f"training.{name}": (POSITIVE, TRAINED) for name in ("lr", "weight_decay", "clip_grad_norm")},
    "training.schedule": (st.just("constant"), TRAINED),
    "training.warmup": (SHARES, TRAINED),
    "training.loss": (st.just("mse"), TRAINED),
    # On this machine `auto` comes to fp32.
    "training.precision": (st.just("bf16"), TRAINED),
    "training.augment.shift_px": (COUNTS, TRAINED),
    **{f"training.augment.{name}": (SHARES, TRAINED) for name in ("gain", "bias")},
    "training.workers": (st.sampled_from([2, 4]), TRAINED),
    # With an INT8 dot product ranges are whole, and QAT is another training; without, they are those of this machine.
    "target.isa": (
        st.sampled_from(["avx-vnni", "avx512-vnni", "amx", "neon-dotprod"]), PTQ | OF_TRIALS | {LAYERS}
    ),
    "calibration.clips": (COUNTS, PTQ | {LAYERS}),
    "calibration.batch_size": (COUNTS, PTQ | {LAYERS}),
    "parity.clips": (COUNTS, PTQ | QAT),
    "parity.max_kernel_share": (SHARES, set()),
    "sweep.trials": (st.integers(3, 8), OF_SWEEP),
    "sweep.weight_bits": (st.just([8, 4]), OF_SWEEP | {"trial 1"}),
    "sweep.lr": (st.tuples(st.floats(1, 2)), OF_TRIALS),
    "sweep.epochs": (st.tuples(st.integers(3, 9)), OF_TRIALS),
    "sweep.observer": (st.just(["minmax"]), OF_TRIALS),
    "sweep.freeze_batch_norm_at": (st.just([0.3, 0.4]), OF_TRIALS),
    "sweep.freeze_observers_at": (st.just([0.3, 0.4]), OF_TRIALS),
    "sweep.keep_fp32": (st.just([["conv1"]]), OF_TRIALS),
    "sweep.reduction_factor": (st.integers(3, 9), OF_SWEEP),
    "sweep.max_concurrent": (COUNTS, set()),
    "evaluation.batch_size": (COUNTS, set()),
    "evaluation.batch_timeout_s": (POSITIVE, set()),
    # Points of a measurement are units of their own; keys of latencies hold what was built.
    **{f"measure.{name}": (st.tuples(COUNTS), set()) for name in ("threads", "batches")},
    "measure.points": (st.just([{"batch": 8}]), set()),
    "measure.seconds": (POSITIVE, {COSTS}),
    # Of one that is given, as of `points`, the units are more.
    "measure.serving": (st.just({"cold_starts": 1}), set()),
    **{f"measure.{name}": (st.integers(2, 99), {COSTS}) for name in ("min_calls", "blocks", "warmup_calls")},
    "sensitivity.clips": (COUNTS, {LAYERS}),
    "sensitivity.weight_bits": (st.just(4), {LAYERS}),
    "sensitivity.observer": (st.just("minmax"), {LAYERS}),
    "sensitivity.tasks": (COUNTS, set()),
    "verdict.margin": (POSITIVE, set()),
    "verdict.thresholds": (st.tuples(POSITIVE), set()),
    "verdict.moved": (POSITIVE, set()),
    **{f"verdict.guardrails.{name}": (POSITIVE, set()) for name in ("class_margin", "local_move", "tail_moved")},
    "verdict.guardrails.min_class_clips": (st.integers(5, 99), set()),
    **{f"verdict.guardrails.{name}": (SHARES, set()) for name in ("moved_share", "distinct_share")},
    "verdict.guardrails.tail_quantile": (st.floats(0.6, 0.9), set()),
    "verdict.guardrails.tied": (COUNTS, set()),
    # The intervals of the sensitivity analysis are part of its record.
    "verdict.bootstrap": (st.integers(100, 9999), {LAYERS}),
    "verdict.seed": (SEEDS, {LAYERS}),
}  # fmt: skip


def keys(study: Study) -> dict[str, str]:
    """Key of each unit that a row or a figure is read from, by kind and what it is of."""
    found = keys_of(study_units(study, manifest_of({"TRAIN": 6, "VAL": 2, "TEST": 3}), MACHINE))
    # What a memory is of is decided by its build, and how many parts share the layers by nothing else.
    return {name: key for name, key in found.items() if name.split()[0] not in ("memory", "layers")}


def leaves(model: BaseModel, prefix: str = "") -> Iterator[str]:
    """Paths of all fields that hold no section; variants are lists of sections, and have tests of their own."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        elif name not in ("variants", "backbone"):
            yield prefix + name


def changed(path: str, value: Any) -> Study:
    """STUDY with one field changed."""
    study = Study.model_validate(STUDY).canonical()
    if not path.startswith("verdict.m"):
        study["verdict"].pop("moved")
    section, *names = study, *path.split(".")
    for name in names[:-1]:
        section = section[name]
    section[names[-1]] = value
    return Study.model_validate(study)


def test_every_field_of_a_study_is_decided_on() -> None:
    assert set(leaves(Study.model_validate(STUDY))) == FIELDS.keys()


@pytest.mark.parametrize("isa", ["any", "avx512", "neon"])
def test_a_target_of_the_same_range_changes_what_is_built_for_it_alone(isa: str) -> None:
    mine, theirs = keys(Study.model_validate(STUDY)), keys(changed("target.isa", isa))
    assert {name for name in mine if mine[name] != theirs[name]} == PTQ | QAT


@pytest.mark.parametrize("path", FIELDS)
@given(data=st.data())
@settings(max_examples=4, deadline=None)
def test_a_field_changes_the_units_that_depend_on_it_and_no_other(path: str, data: st.DataObject) -> None:
    values, affected = FIELDS[path]
    before, after = Study.model_validate(STUDY), changed(path, data.draw(values))
    assume(before != after)
    mine, theirs = keys(before), keys(after)
    assert {name for name in mine if mine[name] != theirs[name]} == affected


@pytest.mark.parametrize(
    "settings", [{"observer": "mse"}, {"range_margin": 1.5}, {"calibration_clips": 500}, {"bias_correction": True}]
)
def test_a_remedy_is_another_artifact(settings: dict[str, Any]) -> None:
    assert key_with(**settings) != key_with()


def test_as_many_clips_as_the_study_has_are_no_remedy() -> None:
    assert key_with(calibration_clips=Study.model_validate(STUDY).calibration.clips) == key_with()


def key_with(**settings: Any) -> str:
    """Of the artifact of a variant with these settings."""
    variant = {"name": "ptq", "method": "ptq", "engine": "openvino"} | settings
    return keys(Study.model_validate(STUDY | {"variants": [STUDY["variants"][0], variant], "sweep": None}))["build ptq"]
