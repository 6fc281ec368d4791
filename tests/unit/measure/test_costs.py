"""Costs of a clip: the parts timed are the whole way from file to prediction, and each gets its turns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.networks import realistic_model, smooth_clips

from qray.measure.costs import PARTS, in_turn, network_parts, time_parts
from qray.model.regressor import VideoRegressor
from qray.study import Measure

SHORT = Measure(seconds=0.04, min_calls=8, blocks=2, warmup_calls=1)
CLIPS = smooth_clips(3, seed=5).numpy()


@pytest.fixture(scope="module")
def model() -> VideoRegressor:
    return realistic_model(passes=2)


class Decoder:
    """Calls that decode one clip each, and note which."""

    def __init__(self) -> None:
        self.order: list[int] = []

    def of(self, clip: int) -> Callable[[], np.ndarray]:
        def call() -> np.ndarray:
            self.order.append(clip)
            return CLIPS[clip]

        return call


def test_the_last_part_ends_with_the_models_own_prediction(model: VideoRegressor) -> None:
    found = network_parts(model, CLIPS[0])["head"]()
    assert isinstance(found, torch.Tensor)
    with torch.inference_mode():
        assert torch.equal(found, model(torch.from_numpy(CLIPS[:1])))


def test_each_part_starts_from_what_the_one_before_left(model: VideoRegressor) -> None:
    parts = network_parts(model, CLIPS[0])
    frames, features = parts["preprocessing"](), parts["backbone"]()
    with torch.inference_mode():
        assert torch.equal(model.backbone(frames), features)


def test_no_part_is_timed_while_it_records_gradients(model: VideoRegressor) -> None:
    found = [call() for call in network_parts(model, CLIPS[0]).values()]
    assert not any(tensor.requires_grad for tensor in found if isinstance(tensor, torch.Tensor))


def test_clips_are_taken_in_turn() -> None:
    decoder = Decoder()
    call = in_turn([decoder.of(i) for i in range(3)])
    for _ in range(5):
        call()
    assert decoder.order == [0, 1, 2, 0, 1]


def test_every_part_gets_the_studys_blocks(model: VideoRegressor) -> None:
    found = time_parts([Decoder().of(0)], model, SHORT)
    assert {part: len(blocks) for part, blocks in found.items()} == dict.fromkeys(PARTS, SHORT.blocks)


def test_every_part_gets_the_studys_least_number_of_calls(model: VideoRegressor) -> None:
    found = time_parts([Decoder().of(0)], model, SHORT)
    assert all(sum(map(len, blocks)) >= SHORT.min_calls for blocks in found.values())


def test_every_clip_is_decoded(model: VideoRegressor) -> None:
    decoder = Decoder()
    time_parts([decoder.of(i) for i in range(3)], model, SHORT)
    assert set(decoder.order) == {0, 1, 2}
