"""Artifacts of the eager engine on a CUDA device predict what they predict on the CPU: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.networks import TARGET_STD, realistic_model, request, smooth_clips

from qray.engines.artifact import Predict
from qray.engines.registry import build_artifact, load_artifact, missing_requirement
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


def on_gpu(method: str, folder: Path, **settings: object) -> Predict:
    """An artifact that is built for a GPU, loaded there."""
    given = {"name": "v", "method": method, "engine": "eager", "device": "cuda", **settings}
    artifact = build_artifact(request(Variant.model_validate(given), realistic_model()), method, folder)
    return load_artifact(artifact)


def test_tf32_rounds_and_fp32_beside_it_does_not(tmp_path: Path) -> None:
    """Whichever was loaded last."""
    clips = smooth_clips(8, seed=7).numpy()
    fp32, tf32 = on_gpu("fp32", tmp_path / "fp32"), on_gpu("tf32", tmp_path / "tf32")
    exact, rounded, again = fp32(clips), tf32(clips), fp32(clips)
    np.testing.assert_array_equal(exact, again)
    assert 1e-6 * TARGET_STD < np.abs(rounded - exact).max() < 0.05 * TARGET_STD


def test_fp16_stays_closer_than_bf16_may(tmp_path: Path) -> None:
    clips = smooth_clips(8, seed=7).numpy()
    exact, half = on_gpu("fp32", tmp_path / "fp32")(clips), on_gpu("fp16", tmp_path / "fp16")(clips)
    assert 0 < np.abs(half - exact).max() < 0.1 * TARGET_STD


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("method", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("engine", ["compile", "inductor"])
def test_what_is_compiled_predicts_what_is_not(tmp_path: Path, engine: str, method: str, cuda_graph: bool) -> None:
    settings = {"engine": engine, "device": "cuda", "cuda_graph": cuda_graph}
    if said := missing_requirement(Variant.model_validate({"name": "v", "method": method, **settings})):
        pytest.skip(said)
    plain = on_gpu(method, tmp_path / "a")
    compiled = on_gpu(method, tmp_path / "b", **settings)
    for seed, batch in enumerate((2, 8, 1)):
        clips = smooth_clips(batch, seed=seed).numpy()
        apart = np.abs(compiled(clips) - plain(clips)).max()
        assert apart < {"fp32": 1e-4, "tf32": 0.05, "fp16": 0.1, "bf16": 0.3}[method] * TARGET_STD


@pytest.mark.parametrize("method", ["fp32", "fp16"])
def test_a_graph_predicts_what_its_kernels_do_for_every_batch_it_is_given(tmp_path: Path, method: str) -> None:
    plain, graph = on_gpu(method, tmp_path / "a"), on_gpu(method, tmp_path / "b", cuda_graph=True)
    kept = []
    for seed, batch in enumerate((2, 8, 2, 1, 8)):
        clips = smooth_clips(batch, seed=seed).numpy()
        kept.append((graph(clips), plain(clips)))
    for found, wanted in kept:
        np.testing.assert_allclose(found, wanted, rtol=1e-3)
