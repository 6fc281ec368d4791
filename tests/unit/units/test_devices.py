"""Variants of a GPU beside those of the CPU: what is planned, where, and for which GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.graphs import manifest_of

from qray.graph.unit import Graph
from qray.measure.isa import Machine
from qray.study import Study
from qray.study_files import dump_study, load_study
from qray.units.plan import study_units

CPU_ALONE: dict[str, Any] = {
    "name": "s",
    "variants": [
        {"name": "fp32", "method": "fp32", "engine": "eager"},
        {"name": "ptq", "method": "ptq", "engine": "onnxruntime"},
    ],
}
FP32, FP16 = (
    {"name": f"{method}-cuda", "method": method, "engine": "eager", "device": "cuda"} for method in ("fp32", "fp16")
)
BOTH = CPU_ALONE | {"variants": [*CPU_ALONE["variants"], FP32, FP16 | {"cuda_graph": True}]}
MANIFEST = manifest_of({"TRAIN": 4, "VAL": 2, "TEST": 2})
H100, L4 = (Machine("avx2", bf16=False, gpu=True, gpu_name=name) for name in ("H100", "L4"))


def plan(study: dict[str, Any], machine: Machine = H100, **more: Any) -> Graph:
    return study_units(Study.model_validate(study | more), MANIFEST, machine)


def keys(graph: Graph) -> dict[str, str]:
    return {str(unit): unit.key_given(lambda _: True) for unit in graph}


def test_each_is_measured_on_its_own_device_at_every_point_of_the_lists() -> None:
    graph = plan(BOTH, measure={"threads": [1, 2], "batches": [8]})
    places = ["1 thread, batch 8", "2 threads, batch 8"]
    assert list(graph.of("measure")) == [*places, *(f"cuda, {place}" for place in places)]
    on_cuda = graph.of("measure")["cuda, 1 thread, batch 8"]
    assert {build.name for build in on_cuda.settled} == {"fp32-cuda", "fp16-cuda"}
    wanted = {f"{name}, {where}{place}" for names, where in (("fp32 ptq", ""), ("fp32-cuda fp16-cuda", "cuda, "))
              for name in names.split() for place in places}  # fmt: skip
    assert graph.of("memory").keys() == wanted


def test_points_may_be_named_one_by_one() -> None:
    points = [{"device": "cuda", "batch": 64}, {"threads": 4, "batch": 1}]
    graph = plan(BOTH, measure={"points": points})
    assert list(graph.of("measure")) == ["cuda, 1 thread, batch 64", "4 threads, batch 1"]


def test_a_study_that_names_points_is_the_same_when_it_is_read_from_what_it_resolved_to(tmp_path: Path) -> None:
    study = Study.model_validate(BOTH | {"measure": {"points": [{"device": "cuda", "batch": 64}, {}]}})
    (tmp_path / "study.yaml").write_text(dump_study(study))
    assert load_study(str(tmp_path / "study.yaml")) == study


def test_work_on_a_gpu_takes_one_and_other_work_none() -> None:
    graph = plan(BOTH)
    on_gpu = {str(unit) for unit in graph if unit.task.resources.on_gpu}
    at = "cuda, 1 thread, batch 1"
    names = "fp32-cuda", "fp16-cuda"
    assert on_gpu == {f"measure:{at}", *(f"evaluate:{n}" for n in names), *(f"memory:{n}, {at}" for n in names)}
    assert graph.of("measure")[at].task.resources.exclusive


def test_variants_of_a_gpu_change_nothing_of_the_others() -> None:
    alone, both = keys(plan(CPU_ALONE)), keys(plan(BOTH))
    assert alone.items() <= both.items()


def test_another_gpu_is_another_evaluation_and_another_measurement_and_the_same_build() -> None:
    one, other = keys(plan(BOTH, H100)), keys(plan(BOTH, L4))
    at = "cuda, 1 thread, batch 1"
    changed = {unit for unit in one if one[unit] != other[unit]}
    names = "fp32-cuda", "fp16-cuda"
    assert changed == {f"measure:{at}", *(f"evaluate:{n}" for n in names), *(f"memory:{n}, {at}" for n in names)}


@pytest.mark.parametrize(
    ("variants", "measure", "words"),
    [
        ([FP16], {}, "variants need {name: fp32-cuda, method: fp32, engine: eager, device: cuda}"),
        ([FP32 | {"method": "dynamic"}], {}, "method dynamic on cuda runs on no engine, not on eager"),
        ([{"name": "x", "method": "tf32", "engine": "eager"}], {}, "method tf32 runs on no engine, not on eager"),
        (
            [FP32 | {"engine": "openvino"}],
            {},
            "method fp32 on cuda runs on eager, inductor, compile, tensorrt, onnxruntime-cuda, not on openvino",
        ),
        ([{"name": "x", "method": "fp32", "engine": "eager", "cuda_graph": True}], {}, "cuda_graph belongs to device"),
        ([FP32 | {"device": "tpu"}], {}, "Input should be 'cpu' or 'cuda'"),
        ([], {"points": [{"device": "cuda"}]}, "measure.points names cuda, and no variant is built for it"),
        ([], {"points": [{"batch": 2}], "batches": [8]}, "leave out batches"),
        ([], {"points": []}, "at least 1"),
    ],
)
def test_what_cannot_be_is_refused(variants: list[dict[str, Any]], measure: dict[str, Any], words: str) -> None:
    given = CPU_ALONE | {"variants": [*CPU_ALONE["variants"], *variants], "measure": measure}
    with pytest.raises(ValidationError) as raised:
        Study.model_validate(given)
    assert words in str(raised.value)
