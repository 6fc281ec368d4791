"""A build is the same whatever its process did before."""

from __future__ import annotations

import pytest
import torch

from qray.engines import registry
from qray.study import Study, Variant
from qray.units.build import build
from qray.units.clips import Job


def test_a_build_computes_with_as_many_threads_after_a_training_as_in_a_fresh_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []

    def requirement(variant: Variant, isa: str) -> str:
        seen.append(torch.get_num_threads())
        return "enough seen"

    monkeypatch.setattr(registry, "missing_requirement", requirement)
    variant = Variant(name="fp32", method="fp32", engine="eager")
    job = Job(Study(name="s", variants=(variant,)), slot_cpus=0.5, board=None)
    before = torch.get_num_threads()
    try:
        for left in (3, 1):
            torch.set_num_threads(left)
            assert build(job, variant, "key", "native", b"", {}, None) == {"skipped": "enough seen"}
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1]
