"""Fixtures of the tests without Ray: artifacts of a tiny network, built when a test first asks for them."""

from __future__ import annotations

import os

import pytest
from support.shelf import Shelf

# Of the compiled packages nobody here claims how fast the code between their kernels runs; optimizing it is most of
# what compiling takes.
os.environ.setdefault("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Artifacts by variant name, each built once."""
    return Shelf(tmp_path_factory.mktemp("shelf"))
