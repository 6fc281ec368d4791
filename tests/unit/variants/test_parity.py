"""Simulated and deployed predictions are compared clip by clip, on calibration clips, and never invented."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import request
from shelf import Shelf

from qray.errors import QrayError
from qray.variants.parity import PARITY_CLIPS, parity_notes


def mean_of(clips: np.ndarray) -> np.ndarray:
    return clips.reshape(len(clips), -1).mean(1)


def batches(count: int, size: int = 8) -> list[torch.Tensor]:
    return [torch.full((size, 1, 2, 2, 3), step * size, dtype=torch.uint8) for step in range(count)]


def test_both_predictions_stand_in_the_clips_order() -> None:
    notes = parity_notes(mean_of, lambda clips: mean_of(clips) + 1, batches(2, size=2))
    assert notes["parity"] == {"simulated": [0.0, 0.0, 2.0, 2.0], "deployed": [1.0, 1.0, 3.0, 3.0]}


def test_the_largest_difference_is_given() -> None:
    notes = parity_notes(mean_of, lambda clips: 1.5 * mean_of(clips), batches(3, size=2))
    assert notes["parity_max_abs"] == 2.0


def test_no_more_clips_than_the_bound_are_predicted() -> None:
    seen: list[int] = []

    def count(clips: np.ndarray) -> np.ndarray:
        seen.append(len(clips))
        return mean_of(clips)

    notes = parity_notes(count, mean_of, batches(20, size=6))
    assert sum(seen) == PARITY_CLIPS == len(notes["parity"]["simulated"])


def test_a_prediction_that_is_not_finite_fails_the_build() -> None:
    with pytest.raises(QrayError, match="deployed model predicts NaN or infinity for 1 of 4 calibration clips"):
        parity_notes(mean_of, lambda clips: np.where(np.arange(len(clips)) == 1, np.nan, 0.0), batches(1, size=4))


def test_onnxruntime_records_both_predictions_of_every_calibration_clip(shelf: Shelf) -> None:
    parity = shelf["ptq-onnxruntime"].built.notes["parity"]
    clips = sum(len(batch) for batch in request(shelf["ptq-onnxruntime"].variant, shelf.model).calibration)
    assert len(parity["simulated"]) == len(parity["deployed"]) == clips


def test_openvino_says_that_it_has_no_simulated_model(shelf: Shelf) -> None:
    assert "no simulated model" in shelf["ptq-openvino"].built.notes["parity"]


def test_inductor_records_what_it_deployed(shelf: Shelf) -> None:
    """The artifact, loaded again, predicts what the build wrote down."""
    from qray.variants.registry import load_artifact

    artifact = shelf["ptq-inductor"]
    clips = torch.cat(list(request(artifact.variant, shelf.model).calibration)).numpy()
    np.testing.assert_allclose(artifact.built.notes["parity"]["deployed"], load_artifact(artifact)(clips), atol=1e-3)


def test_without_calibration_clips_no_parity_by_clip_is_claimed(shelf: Shelf) -> None:
    """This artifact was built from a QAT state and noise."""
    notes = shelf["qat-inductor"].built.notes
    assert "parity" not in notes
    assert notes["parity_max_abs"] >= 0
