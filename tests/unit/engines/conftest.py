"""What the tests of variants share beside the shelf."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from qray.engines import pt2e
from qray.model.regressor import VideoRegressor


@pytest.fixture(scope="session", autouse=True)
def each_network_is_exported_once() -> Iterator[None]:
    """PTQ of one network starts from one program again and again, as long as nobody changes its weights; QAT does."""
    made: dict[tuple[VideoRegressor, torch.Size], torch.export.ExportedProgram] = {}
    export = pt2e.export

    def once(model: VideoRegressor, example: torch.Tensor) -> torch.export.ExportedProgram:
        if model.training:
            return export(model, example)
        key = (model, example.shape)
        if key not in made:
            made[key] = export(model, example)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pt2e, "export", once)
        yield
