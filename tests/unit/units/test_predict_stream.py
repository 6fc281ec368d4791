"""Predictions of a stream: averaged over windows, in the manifest's order, and never a quiet NaN."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest

from qray.data.stream_plan import Batch
from qray.errors import Diverged
from qray.units.evaluate import predict_stream

WINDOWS = 2


def batches(failed: dict[int, str]) -> Iterator[Batch]:
    """Four clips in two batches, each of its own grey; the second window is two levels brighter."""
    for index in (np.array([2, 0]), np.array([1, 3])):
        frames = np.zeros((2, WINDOWS, 3, 4, 4, 3), np.uint8)
        frames[:, 0], frames[:, 1] = (10 * index[:, None, None, None, None] + add for add in (0, 2))
        yield Batch(frames, index, [failed.get(int(number), "") for number in index])


def brightness(clips: np.ndarray) -> np.ndarray:
    return clips.mean((1, 2, 3, 4))


def test_windows_are_averaged_and_clips_that_could_not_be_read_are_left_out() -> None:
    predicted, failed = predict_stream(brightness, batches({1: "gone"}), 4)
    np.testing.assert_array_equal(predicted, [1, np.nan, 21, 31])
    assert failed == {1: "gone"}


def test_a_prediction_that_is_not_a_number_is_no_clip_that_could_not_be_read() -> None:
    with pytest.raises(Diverged, match=re.escape("2 of 4 predictions are not finite")):
        predict_stream(lambda clips: np.log(brightness(clips) - 11), batches({}), 4)
