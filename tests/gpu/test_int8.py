"""`qray::int8_conv2d` on a CUDA device is its reference to the last bit, and engine triton predicts there what it
does on the CPU: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.int8_convolutions import CASES, Case, arguments, drawn, wanted
from support.networks import realistic_model, request, smooth_clips

from qray.engines import triton
from qray.engines.int8_conv import int8_conv2d
from qray.engines.int8_conv_triton import TILES, Tile, launch
from qray.engines.registry import build_artifact, load_artifact
from qray.study import Variant

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DRAWN = {f"seed {seed}": drawn(torch.Generator().manual_seed(seed)) for seed in range(12)}
#: A layer of each stage of ResNet-18, for one clip of 8 frames of 112 x 112.
LAYERS = {
    f"{channels} channels": Case((8, channels, size, size), (channels, channels, 3, 3), padding=(1, 1), residual=True)
    for channels, size in ((64, 28), (128, 14), (256, 7), (512, 4))
}


def on_gpu(case: Case, tile: Tile | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel gives, and what it should."""
    given = arguments(case)
    moved = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    found = launch(**moved, tile=tile) if tile else int8_conv2d(**moved)
    return found.cpu().numpy(), wanted(case, given)


@pytest.mark.parametrize("case", {**CASES, **DRAWN, **LAYERS}.values(), ids=list({**CASES, **DRAWN, **LAYERS}))
def test_the_kernel_is_exact(case: Case) -> None:
    found, right = on_gpu(case)
    np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("tile", [replace(tile, splits=splits) for _, tile in TILES for splits in (1, 4)], ids=str)
def test_the_tile_changes_nothing(tile: Tile) -> None:
    found, right = on_gpu(LAYERS["128 channels"], tile)
    np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_an_artifact_predicts_what_its_reference_does(tmp_path: Path, cuda_graph: bool) -> None:
    variant = Variant(name="v", method="ptq", engine="triton", device="cuda", cuda_graph=cuda_graph)
    artifact = build_artifact(request(variant, realistic_model()), "v", tmp_path / "v")
    reference = triton.load(artifact.folder, replace(artifact.built, notes={}), 1, "cpu")
    predict = load_artifact(artifact)
    for batch in (8, 1, 2, 8):
        clips = smooth_clips(batch, seed=batch).numpy()
        # What is before the first convolution and after the last is in float, where a sum has another order.
        np.testing.assert_allclose(predict(clips), reference(clips), rtol=1e-3)
