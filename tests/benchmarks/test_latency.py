"""Speed-ups of full ResNet-18 in INT8 over FP32 eager, on one thread of a quiet machine. Prints its figures.

Run: pytest tests/benchmarks -s
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.networks import FULL, FULL_CLIP, realistic_model, request
from support.shelf import build_in_own_process

from qray.engines.registry import build_artifact
from qray.measure.host import cpu_flags
from qray.measure.latency import Latency, measure_latency
from qray.point import Point
from qray.study import Measure, Variant

VARIANTS = (
    ("fp32", "fp32", "eager"),
    ("fp32-inductor", "fp32", "inductor"),
    ("fp32-openvino", "fp32", "openvino"),
    ("ptq-inductor", "ptq", "inductor"),
    ("ptq-onnxruntime", "ptq", "onnxruntime"),
    ("ptq-openvino", "ptq", "openvino"),
)
#: Least speed-up over FP32 eager on a CPU with avx512_vnni; elsewhere the figures are printed and nothing is promised.
LEAST_SPEEDUP = {"ptq-inductor": 4.0, "ptq-onnxruntime": 3.5, "ptq-openvino": 4.2}
SETTINGS = Measure(seconds=6.0, min_calls=60, blocks=12)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Latency]:
    """Latency of one clip of 8 x 112 x 112 on one thread, all variants interleaved; prints the table."""
    root = tmp_path_factory.mktemp("benchmark")
    model = realistic_model(FULL, FULL_CLIP, passes=2, batch=4)
    for name, method, engine in VARIANTS:
        variant = Variant.model_validate({"name": name, "method": method, "engine": engine})
        build = request(variant, model, FULL_CLIP, batches=2)
        if engine == "openvino":
            build_in_own_process((build, root / name))
        else:
            build_artifact(build, name, root / name)
    folders: dict[str, Path] = {name: root / name for name, _, _ in VARIANTS}
    result = measure_latency(folders, Point(threads=1, batch=1), SETTINGS, timeout_s=600)
    show(result)
    return result


def speedup(measured: dict[str, Latency], name: str) -> float:
    reference, median = measured["fp32"].percentile(50), measured[name].percentile(50)
    assert reference is not None
    assert median is not None, measured[name].error
    return reference / median


def show(measured: dict[str, Latency]) -> None:
    first = measured["fp32"]
    print(f"\n{first.host}; {first.cpu_flags}; load {first.load_average}; 1 thread, batch 1, 8 x 112 x 112")
    for name, latency in measured.items():
        p50, p90 = latency.percentile(50), latency.percentile(90)
        print(f"{name:18} p50 {p50:7.2f} ms  p90 {p90:7.2f} ms  n {latency.n:4}  x{speedup(measured, name):.2f}")


@pytest.mark.parametrize("name", [name for name, _, _ in VARIANTS])
def test_every_engine_is_measured(measured: dict[str, Latency], name: str) -> None:
    assert measured[name].n >= SETTINGS.min_calls


@pytest.mark.parametrize("name", LEAST_SPEEDUP if "avx512_vnni" in cpu_flags() else ())
def test_int8_is_as_much_faster_as_it_should_be(measured: dict[str, Latency], name: str) -> None:
    assert speedup(measured, name) >= LEAST_SPEEDUP[name]
