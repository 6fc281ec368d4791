"""What the tests of variants share beside the shelf."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from qray.model.regressor import VideoRegressor
from qray.variants import pt2e
from qray.variants.artifact import BuildRequest


@pytest.fixture(scope="session", autouse=True)
def each_network_is_exported_once() -> Iterator[None]:
    """PTQ of one network starts from one program again and again, as long as nobody changes its weights."""
    made: dict[tuple[VideoRegressor, str], torch.export.ExportedProgram] = {}
    export = pt2e.export

    def once(model: VideoRegressor, request: BuildRequest, strict: bool = True) -> torch.export.ExportedProgram:
        assert not model.training
        key = (model, repr((request.clip, strict)))
        if key not in made:
            made[key] = export(model, request, strict)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pt2e, "export", once)
        yield
