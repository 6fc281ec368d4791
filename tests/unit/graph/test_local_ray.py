"""A Ray that does not start is a sentence that says where to look."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from qray.errors import QrayError
from qray.graph.local_ray import start_local_ray


def test_a_ray_whose_processes_are_late_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**options: Any) -> None:
        # As Ray's node.py raises it, a bare Exception.
        raise Exception("The current node timed out during startup. This could happen")

    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(QrayError, match=r"cannot start a local Ray: The current node timed out .*; its logs are in "):
        start_local_ray(2, {})
