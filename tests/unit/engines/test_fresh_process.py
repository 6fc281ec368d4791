"""An artifact is all that is shipped: it loads where nothing of the training is, and predicts alike for any batch.

The artifacts of each engine are loaded by a process of their own, with an empty PATH and so without a compiler.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.networks import TARGET_STD
from support.shelf import VARIANTS, Shelf

ALL = tuple(VARIANTS)
OWN_ENGINE = tuple(name for name, v in VARIANTS.items() if v.engine in ("onnxruntime", "openvino"))
AOT = tuple(name for name, v in VARIANTS.items() if v.engine == "inductor")
#: Largest distance from FP32, in standard deviations of the target. The network is random and narrow, which hurts it
#: more than a trained one.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.3, "dynamic": 0.1, "ptq": 0.8}


@pytest.mark.parametrize("name", ALL)
def test_an_artifact_loads_without_the_code_that_trained_it(shelf: Shelf, name: str) -> None:
    modules = shelf.fresh(name)["modules"]
    # The catalog of backbones is the study's, and light.
    assert not [m for m in modules if m.startswith(("qray.model.", "torchvision")) and m != "qray.model.catalog"]


@pytest.mark.parametrize("name", OWN_ENGINE)
def test_an_engine_of_its_own_tells_nobody_that_it_is_used(shelf: Shelf, name: str) -> None:
    """OpenVINO would, by Google Analytics, from a process that it forks when it is imported."""
    assert [module for module in shelf.fresh(name)["modules"] if "telemetry" in module.partition(".")[0]] == []
    assert shelf.fresh(name)["forks"] == 0


@pytest.mark.parametrize("name", OWN_ENGINE)
def test_an_engine_of_its_own_needs_no_torch(shelf: Shelf, name: str) -> None:
    assert "torch" not in shelf.fresh(name)["modules"]


@pytest.mark.parametrize("name", AOT)
def test_a_compiled_package_needs_neither_torchao_nor_the_compiler(shelf: Shelf, name: str) -> None:
    assert not {"torchao", "torch._inductor", "torch._dynamo"} & set(shelf.fresh(name)["modules"])


@pytest.mark.parametrize("name", ALL)
def test_a_clip_gets_the_same_prediction_in_any_batch(shelf: Shelf, name: str) -> None:
    predictions = shelf.fresh(name)["predictions"]
    for batch in ("1", "2"):
        np.testing.assert_allclose(predictions[batch], predictions["5"][: int(batch)], rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_there_is_one_float32_per_clip(shelf: Shelf, name: str) -> None:
    fresh = shelf.fresh(name)
    assert fresh["dtypes"] == ["float32"]
    assert [np.shape(fresh["predictions"][batch]) for batch in ("1", "2", "5")] == [(1,), (2,), (5,)]


@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if v.method in TOLERANCE and v.weight_bits == 8])
def test_predictions_stay_close_to_fp32(shelf: Shelf, name: str) -> None:
    predicted = np.asarray(shelf.fresh(name)["predictions"]["5"])
    limit = TOLERANCE[VARIANTS[name].method] * TARGET_STD
    assert np.abs(predicted - shelf.expected[:5]).max() < limit


def test_four_bit_predictions_still_tell_clips_apart(shelf: Shelf) -> None:
    """4 bits without training are coarse, so closeness to FP32 is not theirs to promise."""
    predicted = np.asarray(shelf.fresh("ptq-inductor-w4")["predictions"]["5"])
    assert np.corrcoef(predicted, shelf.expected[:5])[0, 1] > 0.8
