"""What a GPU computes in, and how many clips it predicts a second: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.networks import realistic_model, request, smooth_clips

from qray.engines.registry import build_artifact, load_artifact
from qray.measure.gpu import gpu_figures
from qray.study import Variant

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CLIPS = smooth_clips(8, seed=7).numpy()


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    folder, predicts = tmp_path_factory.mktemp("timing"), {}
    for name, graph in (("plain", False), ("graph", True)):
        variant = Variant(name=name, method="fp32", engine="eager", device="cuda", cuda_graph=graph)
        predicts[name] = load_artifact(build_artifact(request(variant, realistic_model()), name, folder / name))
        predicts[name](CLIPS)
    before = {name: predict(CLIPS) for name, predict in predicts.items()}
    found = gpu_figures(predicts, CLIPS, blocks=3, min_calls=30, seconds=0.5)
    for name, predict in predicts.items():
        np.testing.assert_array_equal(predict(CLIPS), before[name])
    return found


def test_every_call_has_its_time_and_its_throughput(figures: dict[str, dict[str, object]]) -> None:
    assert set(figures["compute_ms"]) == set(figures["throughput_clips_s"]) == {"plain", "graph"}
    for name, taken in figures["compute_ms"].items():
        assert len(taken) >= 30  # type: ignore[arg-type]
        assert min(taken) > 0  # type: ignore[call-overload]
        assert figures["throughput_clips_s"][name] > 0  # type: ignore[operator]


def test_a_graph_launches_faster_than_its_kernels_one_by_one(figures: dict[str, dict[str, object]]) -> None:
    """Of a tiny network, whose kernels are shorter than their launches."""
    plain, graph = (np.median(figures["compute_ms"][name]) for name in ("plain", "graph"))  # type: ignore[call-overload]
    assert graph < plain
