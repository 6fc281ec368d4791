"""Artifacts of the eager engine on a CUDA device predict what they predict on the CPU: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.networks import TARGET_STD, realistic_model, request, smooth_clips

from qray.engines.registry import build_artifact, load_artifact
from qray.study import Variant

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def on_both(method: str, folder: Path, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of one artifact, built on the CPU, on the CPU and on the GPU."""
    variant = Variant.model_validate({"name": method, "method": method, "engine": "eager"})
    artifact = build_artifact(request(variant, realistic_model()), method, folder / method)
    return load_artifact(artifact)(clips), load_artifact(artifact, device="cuda")(clips)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_fp32_predicts_on_the_gpu_as_on_the_cpu(tmp_path: Path, batch: int) -> None:
    cpu, gpu = on_both("fp32", tmp_path, smooth_clips(batch, seed=7).numpy())
    assert (gpu.dtype, gpu.shape) == (np.dtype(np.float32), (batch,))
    np.testing.assert_allclose(gpu, cpu, rtol=1e-3)


def test_fp32_is_computed_in_fp32(tmp_path: Path) -> None:
    """TF32 keeps 10 bits of each factor, which shows at the fourth digit."""
    cpu, gpu = on_both("fp32", tmp_path, smooth_clips(8, seed=7).numpy())
    assert not torch.backends.cudnn.allow_tf32
    np.testing.assert_allclose(gpu, cpu, rtol=5e-5)


def test_bf16_stays_close_on_the_gpu(tmp_path: Path) -> None:
    cpu, gpu = on_both("bf16", tmp_path, smooth_clips(8, seed=7).numpy())
    assert np.abs(gpu - cpu).max() < 0.3 * TARGET_STD


def test_the_cpu_is_still_there_after_the_gpu(tmp_path: Path) -> None:
    clips = smooth_clips(2, seed=7).numpy()
    variant = Variant(name="fp32", method="fp32", engine="eager")
    artifact = build_artifact(request(variant, realistic_model()), "fp32", tmp_path / "fp32")
    load_artifact(artifact, device="cuda")(clips)
    with torch.no_grad():
        np.testing.assert_allclose(
            load_artifact(artifact)(clips), realistic_model()(torch.from_numpy(clips)).numpy(), rtol=1e-4
        )
