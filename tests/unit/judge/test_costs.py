"""What a clip costs, as it is told: shares add up, and a record that is not whole tells nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from qray.judge.costs import Costs, costs_of
from qray.measure.costs import PARTS
from qray.words.phrases import costs_words

MS = {"decode": 2.0, "preprocessing": 0.5, "backbone": 7.0, "head": 0.5}


def record(blocks: int = 10, seed: int = 0, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    slow = 1 + 0.1 * rng.random(blocks)
    calls = {part: [[ms * by] * 3 for by in slow] for part, ms in MS.items()}
    return {"blocks_ms": calls, "frames": 16, "image_size": 64, "threads": 1, "started": 1.0} | more


def told(of: dict[str, Any]) -> Costs:
    found = costs_of(of)
    assert found is not None
    return found


def test_the_share_outside_the_network_is_that_of_decode_and_preprocessing() -> None:
    assert told(record()).outside.value == pytest.approx(0.25)


def test_what_slows_all_parts_alike_leaves_the_share_certain() -> None:
    found = told(record()).outside
    assert (found.low, found.high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_a_part_costs_the_mean_of_its_blocks_medians_with_students_interval() -> None:
    of = record()
    medians = np.median(of["blocks_ms"]["backbone"], axis=1)
    expected = stats.ttest_1samp(medians, 0.0).confidence_interval(0.95)
    found = told(of).parts["backbone"]
    assert (found.value, found.low, found.high) == pytest.approx((medians.mean(), expected.low, expected.high))


def test_a_network_that_took_no_time_would_leave_what_is_outside_of_it() -> None:
    assert told(record()).limit == pytest.approx(4.0)


def test_one_block_gives_no_interval() -> None:
    assert told(record(blocks=1)).outside.low is None


def test_the_sentence_names_every_part_and_the_share() -> None:
    of = record() | {"blocks_ms": {part: [[ms]] * 2 for part, ms in MS.items()}}
    assert costs_words(told(of)) == (
        "one clip of 16 frames costs: decode 2.00 ms, preprocessing 0.50, backbone 7.00, head 0.50 (FP32 eager, "
        "1 thread): 25% of the time is outside the network"
    )


def without(part: str) -> dict[str, Any]:
    return {name: blocks for name, blocks in record()["blocks_ms"].items() if name != part}


@pytest.mark.parametrize(
    "damage",
    [
        {"blocks_ms": None},
        {"blocks_ms": without("head")},
        {"blocks_ms": without("head") | {"head": []}},
        {"blocks_ms": without("head") | {"head": [[1.0]]}},
        {"blocks_ms": without("head") | {"head": [[]] * 10}},
        {"blocks_ms": {key: [[0.0]] for key in PARTS}},
        {"blocks_ms": {key: [[float("nan")]] for key in PARTS}},
    ],
    ids=["no calls", "a part lacks", "no block", "other rounds", "empty blocks", "no time", "not a number"],
)
def test_a_record_that_is_not_whole_tells_nothing(damage: dict[str, Any]) -> None:
    assert costs_of(record() | damage) is None


def test_a_record_of_something_else_tells_nothing() -> None:
    assert costs_of({"label": "measure latency", "latency": {}}) is None
