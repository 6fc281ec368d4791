"""One data set and two trained networks for all tests of import."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from support.imports import TheirFrameNetwork, TheirNetwork, make_set, settled, train_statistics, write_predictions
from torch import nn


class Theirs(NamedTuple):
    """A network, how its input is normalised, and the file of its own predictions on TEST."""

    network: nn.Module
    mean: list[float]
    std: list[float]
    predictions: Path


@pytest.fixture(scope="session")
def echo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four small videos in the EchoNet layout."""
    return make_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="session")
def theirs(echo_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    """The network on whole clips."""
    torch.manual_seed(0)
    network = settled(TheirNetwork(), echo_set, steps=40)
    mean, std = train_statistics(echo_set)
    path = tmp_path_factory.mktemp("their") / "predictions.csv"
    return Theirs(network, mean.tolist(), std.tolist(), write_predictions(path, network, echo_set, mean, std))


@pytest.fixture(scope="session")
def their_frames(echo_set: Path) -> nn.Module:
    """The network on frames."""
    torch.manual_seed(0)
    return settled(TheirFrameNetwork(), echo_set, steps=40, frames=True)
