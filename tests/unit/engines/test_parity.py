"""FP32, simulated and deployed predictions are compared clip by clip on VAL clips, and the gate between them holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.shelf import STATIC, Shelf

from qray.engines import pt2e
from qray.engines.artifact import Predict
from qray.engines.parity import Outside, Simulated, kernel_fault, parity_notes
from qray.errors import QrayError


def mean_of(clips: np.ndarray) -> np.ndarray:
    return clips.reshape(len(clips), -1).mean(1)


def plus(offset: float) -> Predict:
    return lambda clips: mean_of(clips) + offset


def batches(count: int, size: int = 8) -> list[torch.Tensor]:
    return [torch.full((size, 1, 2, 2, 3), step * size, dtype=torch.uint8) for step in range(count)]


def notes_of(simulated: float, deployed: float) -> dict[str, object]:
    return parity_notes(mean_of, Simulated(plus(simulated), Outside()), plus(deployed), batches(2, size=2))


def test_all_three_predictions_stand_in_the_clips_order() -> None:
    assert notes_of(1, 3)["parity"] == {
        "fp32": [0.0, 0.0, 2.0, 2.0], "simulated": [1.0, 1.0, 3.0, 3.0], "deployed": [3.0, 3.0, 5.0, 5.0],
    }  # fmt: skip


def test_the_error_of_the_kernels_is_apart_from_the_cost_of_quantization() -> None:
    notes = notes_of(1, 3)
    assert (notes["kernel_rms"], notes["quantization_rms"], notes["parity_max_abs"]) == (2.0, 1.0, 2.0)


def test_without_validation_clips_nothing_is_claimed() -> None:
    assert parity_notes(mean_of, Simulated(mean_of, Outside()), mean_of, ()) == {}


def test_a_prediction_that_is_not_finite_fails_the_build() -> None:
    def broken(clips: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(clips)) == 1, np.nan, 0.0)

    with pytest.raises(QrayError, match="deployed model predicts NaN or infinity for 1 of 4 VAL clips"):
        parity_notes(mean_of, Simulated(mean_of, Outside()), broken, batches(1, size=4))


def test_kernels_under_the_stated_share_pass() -> None:
    assert kernel_fault(notes_of(1, 1.25), 0.5) is None


def test_kernels_over_the_stated_share_fail_with_both_figures() -> None:
    fault = kernel_fault(notes_of(1, 1.75), 0.5)
    assert fault is not None
    assert "move predictions by 0.75 (RMS over 4 VAL clips, at most 0.75), 0.75 of the 1 that quantization" in fault


def test_kernels_that_err_where_quantization_costs_nothing_fail() -> None:
    assert kernel_fault(notes_of(0, 0.1), 0.5) is not None


def test_kernels_that_add_nothing_pass_whatever_quantization_costs() -> None:
    assert kernel_fault(notes_of(0, 0), 0.5) is None


def test_values_outside_a_range_are_counted_beyond_half_a_step() -> None:
    outside = Outside()
    outside.see("a", np.array([-0.6, -0.4, 0.0, 255.4, 255.6]), 0, 255, 1)
    outside.see("b", np.array([1.0, 2.0]), 0, 255, 1)
    assert outside.notes() == {"outside_share": 2 / 7, "outside": {"a": 2 / 5}}


@pytest.mark.parametrize("name", STATIC)
def test_every_int8_engine_has_a_simulated_model_on_clips_that_calibrated_nothing(shelf: Shelf, name: str) -> None:
    build = shelf.request(name)
    seen = {clip.numpy().tobytes() for batch in build.calibration for clip in batch}
    assert not seen & {clip.numpy().tobytes() for batch in build.validation for clip in batch}
    parity = shelf[name].built.notes["parity"]
    assert {len(parity[model]) for model in ("fp32", "simulated", "deployed")} == {sum(map(len, build.validation))}


@pytest.mark.parametrize("name", STATIC)
def test_the_simulated_model_is_nearer_to_the_deployed_one_than_to_fp32(shelf: Shelf, name: str) -> None:
    notes = shelf[name].built.notes
    assert notes["kernel_rms"] < notes["quantization_rms"]


@pytest.mark.parametrize("name", STATIC)
def test_activations_outside_their_ranges_are_reported(shelf: Shelf, name: str) -> None:
    """64-odd noise-like clips calibrate a network whose activations have tails: some are beyond, most are not."""
    assert 0 < shelf[name].built.notes["outside_share"] < 0.05


def test_a_module_that_calibrated_on_dull_clips_cuts_off_more(shelf: Shelf) -> None:
    build = shelf.request("ptq-inductor")
    dull = [(batch.float() * 0.2 + 100).to(torch.uint8) for batch in build.calibration]
    shares = []
    for module in (shelf.simulated, pt2e.quantize_static(replace(build, calibration=dull))):
        simulated = pt2e.simulate(module, 1)
        simulated.predict(build.validation[0].numpy())
        shares.append(simulated.outside.notes()["outside_share"])
    assert shares[1] > 2 * shares[0]


def test_inductor_records_what_it_deployed(shelf: Shelf) -> None:
    """The artifact, loaded again, predicts what the build wrote down."""
    from qray.engines.registry import load_artifact

    artifact = shelf["ptq-inductor"]
    clips = torch.cat(list(shelf.request("ptq-inductor").validation)).numpy()
    deployed = load_artifact(artifact, allow_code=True)(clips)
    np.testing.assert_allclose(artifact.built.notes["parity"]["deployed"], deployed, atol=1e-3)
