"""ONNX Runtime's providers for a GPU run all of a network or nothing: told without a GPU, which no test has had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from support.networks import request as request_of
from support.networks import smooth_clips, two_stages

from qray.engines.artifact import Artifact
from qray.engines.onnxruntime import runner, session_of
from qray.engines.onnxruntime_gpu import PROVIDERS, session_on
from qray.engines.registry import build_artifact, load_artifact, missing_requirement
from qray.errors import QrayError
from qray.study import Variant


def variant(method: str, engine: str) -> Variant:
    return Variant.model_validate({"name": f"{method}-{engine}", "method": method, "engine": engine, "device": "cuda"})


@pytest.fixture(scope="module", params=[("fp16", "onnxruntime-cuda"), ("tf32", "onnxruntime-tensorrt")], ids=str)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    method, engine = request.param
    return build_artifact(request_of(variant(method, engine), two_stages()), "k", tmp_path_factory.mktemp("gpu") / "k")


@pytest.mark.parametrize("engine", PROVIDERS)
def test_the_package_for_cpus_is_the_reason_of_a_skipped_row(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qray.engines.registry.find_spec", lambda name: object())
    said = missing_requirement(variant("fp16", engine))
    assert said == "the onnxruntime that is installed is that for CPUs; pip install onnxruntime-gpu in its place"


def test_the_graph_is_of_the_types_of_its_method(artifact: Artifact) -> None:
    graph = onnx.load(str(artifact.folder / "model.onnx")).graph
    types = {tensor.data_type for tensor in graph.initializer if tensor.dims and len(tensor.dims) == 4}
    assert (TensorProto.FLOAT16 in types) == (artifact.variant.method == "fp16")
    predicted = runner(session_of(artifact.folder / "model.onnx", 1))(smooth_clips(2, seed=4).numpy())
    assert predicted.dtype == np.float32
    assert np.isfinite(predicted).all()


def test_what_the_gpu_cannot_be_had_for_is_an_error_and_runs_nowhere_else(artifact: Artifact) -> None:
    with pytest.raises(QrayError, match=f"has no {PROVIDERS[artifact.variant.engine]}; pip install onnxruntime-gpu"):
        load_artifact(artifact)


def test_a_provider_of_a_strangers_artifact_is_none_but_those(artifact: Artifact, tmp_path: Path) -> None:
    artifact.built.notes["provider"] = "OpenVINOExecutionProvider"
    try:
        with pytest.raises(QrayError, match="is no provider that qray uses"):
            load_artifact(artifact)
    finally:
        artifact.built.notes["provider"] = PROVIDERS[artifact.variant.engine]


def test_nothing_is_left_to_the_cpu_without_a_word(artifact: Artifact) -> None:
    """Of another provider that ONNX Runtime has everywhere, and that runs nothing of such a network."""
    with pytest.raises(QrayError, match=r"AzureExecutionProvider does not run all of it: .*fallback"):
        session_on(artifact.folder / "model.onnx", "AzureExecutionProvider", 1, tf32=False)
