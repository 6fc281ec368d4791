"""An artifact's folder describes itself, appears whole or not at all, and never changes what it was made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.networks import TINY_CLIP
from support.shelf import VARIANTS, Shelf

from qray.engines.artifact import BuildRequest, read_artifact
from qray.engines.registry import build_artifact, load_artifact
from qray.errors import QrayError


@pytest.fixture
def copied(shelf: Shelf, tmp_path: Path) -> Path:
    """A copy of an artifact that a test may damage."""
    return Path(shutil.copytree(shelf["fp32-onnxruntime"].folder, tmp_path / "artifact"))


def test_an_artifact_reads_back_as_it_was_built(shelf: Shelf) -> None:
    artifact = shelf["fp32-onnxruntime"]
    assert (artifact.variant, artifact.clip) == (VARIANTS["fp32-onnxruntime"], TINY_CLIP)


def test_its_description_carries_versions_and_cpu_flags(shelf: Shelf) -> None:
    assert {"torch", "onnxruntime", "cpu_flags"} <= set(shelf["fp32-onnxruntime"].versions)


def test_an_artifact_can_be_moved(copied: Path, shelf: Shelf) -> None:
    np.testing.assert_allclose(load_artifact(copied)(shelf.clips), shelf.expected, rtol=1e-4)


def test_a_folder_without_a_description_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(QrayError, match=r"not an artifact \(no artifact\.json\)"):
        read_artifact(tmp_path)


def test_another_format_asks_for_a_new_build(copied: Path) -> None:
    path = copied / "artifact.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(QrayError, match="format 99, this qray reads format 2; build it again"):
        read_artifact(copied)


def test_a_damaged_description_says_where(copied: Path) -> None:
    (copied / "artifact.json").write_text("{")
    with pytest.raises(QrayError, match=r"artifact\.json: not readable"):
        read_artifact(copied)


@pytest.mark.parametrize("name", ["ptq-inductor", "ptq-onnxruntime", "ptq-openvino"])
def test_static_quantization_without_clips_says_so(shelf: Shelf, name: str, tmp_path: Path) -> None:
    with pytest.raises(QrayError, match=f"{name}: static quantization observes calibration clips, and there are none"):
        build_artifact(BuildRequest(VARIANTS[name], shelf.model, TINY_CLIP), "key", tmp_path / "artifact")


def test_a_build_that_fails_leaves_nothing_behind(shelf: Shelf, tmp_path: Path) -> None:
    variant = VARIANTS["ptq-onnxruntime"].model_copy(update={"keep_fp32": ("no.such.layer",)})
    build = BuildRequest(variant, shelf.model, TINY_CLIP, shelf.request("ptq-onnxruntime").calibration)
    with pytest.raises(QrayError, match="no layer"):
        build_artifact(build, "key", tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", VARIANTS)
def test_building_leaves_the_model_as_it_was(shelf: Shelf, name: str) -> None:
    before = shelf.expected
    assert shelf[name]
    with torch.no_grad():
        np.testing.assert_array_equal(shelf.model(torch.from_numpy(shelf.clips)).numpy(), before)


@pytest.mark.parametrize("name", ["fp32", "fp32-onnxruntime", "fp32-openvino", "fp32-inductor"])
def test_clips_need_not_be_contiguous(shelf: Shelf, name: str) -> None:
    predict = load_artifact(shelf[name], allow_code=True)
    np.testing.assert_allclose(predict(shelf.clips[::-1]), predict(shelf.clips)[::-1], rtol=1e-4)
