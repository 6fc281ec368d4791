"""What is shipped, and how much of it is parameters."""

from __future__ import annotations

import pytest
from support.shelf import STATIC, VARIANTS, Shelf


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_are_part_of_what_is_shipped(shelf: Shelf, name: str) -> None:
    assert 0 < shelf[name].built.weights_bytes <= shelf[name].size_bytes


@pytest.mark.parametrize("name", STATIC)
def test_eight_bit_weights_take_a_quarter_and_those_of_4_bits_an_eighth(shelf: Shelf, name: str) -> None:
    """A little more: scales and biases are FP32, and so is a kept layer."""
    bits = VARIANTS[name].weight_bits
    kept = (4 - bits / 8) * 16 * 8 * 3 * 3 if VARIANTS[name].keep_fp32 else 0
    ratio = (shelf[name].built.weights_bytes - kept) / shelf["fp32"].built.weights_bytes
    assert bits / 32 - 0.01 < ratio < bits / 32 + 0.04


@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name].method == "bf16"])
def test_bf16_weights_take_a_half(shelf: Shelf, name: str) -> None:
    """Of those of FP32 on the same engine, which may fold batch-norm."""
    fp32 = shelf[name.replace("bf16", "fp32")]
    assert shelf[name].built.weights_bytes / fp32.built.weights_bytes == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["fp32-inductor", "fp32-onnxruntime", "fp32-openvino"])
def test_fp32_weights_are_the_same_on_every_engine(shelf: Shelf, name: str) -> None:
    """But for batch-norm, which two of them fold."""
    assert shelf[name].built.weights_bytes == pytest.approx(shelf["fp32"].built.weights_bytes, rel=0.03)


def test_the_description_is_not_counted_as_shipped(shelf: Shelf) -> None:
    artifact = shelf["fp32-onnxruntime"]
    assert artifact.size_bytes == (artifact.folder / "model.onnx").stat().st_size


def test_a_package_ships_no_sources(shelf: Shelf) -> None:
    import zipfile

    names = zipfile.ZipFile(shelf["ptq-inductor"].folder / "model.pt2").namelist()
    assert not [name for name in names if name.endswith(".cpp")]
