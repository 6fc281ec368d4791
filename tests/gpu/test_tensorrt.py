"""TensorRT's plans predict what PyTorch does, and run in INT8 what they should: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.networks import CONVOLUTIONS, RESIDUAL_ADDS, TARGET_STD, request, smooth_clips, two_stages

from qray.engines.artifact import Artifact
from qray.engines.parity import kernel_share
from qray.engines.registry import build_artifact, load_artifact, missing_requirement
from qray.study import Variant

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def built(method: str, folder: Path, engine: str = "tensorrt", **settings: object) -> Artifact:
    given = {"name": "v", "method": method, "engine": engine, "device": "cuda", **settings}
    variant = Variant.model_validate(given)
    if said := missing_requirement(variant):
        pytest.skip(said)
    return build_artifact(request(variant, two_stages()), "v", folder)


@pytest.mark.parametrize(
    ("engine", "method"),
    [("tensorrt", "fp32"), ("tensorrt", "tf32"), ("tensorrt", "fp16"), ("onnxruntime-cuda", "fp32"),
     ("onnxruntime-cuda", "tf32"), ("onnxruntime-cuda", "fp16"), ("onnxruntime-tensorrt", "tf32"),
     ("onnxruntime-tensorrt", "fp16")],
)  # fmt: skip
def test_floats_predict_what_pytorch_does(tmp_path: Path, engine: str, method: str) -> None:
    predict = load_artifact(built(method, tmp_path / "v", engine), allow_code=True)
    for seed, batch in enumerate((2, 70, 1)):
        clips = smooth_clips(batch, seed=seed)
        with torch.no_grad():
            wanted = two_stages()(clips).numpy()
        apart = np.abs(predict(clips.numpy()) - wanted).max()
        assert apart < {"fp32": 1e-3, "tf32": 0.05, "fp16": 0.1}[method] * TARGET_STD


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_all_of_a_resnet_runs_in_int8_and_predicts_what_was_simulated(tmp_path: Path, cuda_graph: bool) -> None:
    artifact = built("ptq", tmp_path / "v", cuda_graph=cuda_graph)
    notes = artifact.built.notes
    assert (notes["int8_layers"], notes["int8_residual_adds"]) == (CONVOLUTIONS, RESIDUAL_ADDS)
    assert artifact.built.int8_mac_share > 0.999
    share = kernel_share(notes)
    assert share is not None
    assert share < 0.5
    clips = smooth_clips(3, seed=9).numpy()
    predict = load_artifact(artifact, allow_code=True)
    np.testing.assert_array_equal(predict(clips), predict(clips))
