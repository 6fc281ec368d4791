"""Fixtures of the tests without Ray: artifacts of a tiny network, built when a test first asks for them."""

from __future__ import annotations

import pytest
from support.shelf import Shelf


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Artifacts by variant name, each built once."""
    return Shelf(tmp_path_factory.mktemp("shelf"))
