"""4-bit weights take half a byte in what is shipped, and are what was quantized when it is loaded."""

from __future__ import annotations

import ctypes
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from support.shelf import Shelf
from torch import fx

from qray.engines import pt2e
from qray.engines.packed import PAGE, pack, unpack
from qray.engines.registry import load_artifact

W4 = "ptq-inductor-w4"


@pytest.mark.parametrize("length", [0, 1, PAGE - 1, PAGE, PAGE + 1, 10_000])
@pytest.mark.parametrize("most", [7, 127])
def test_what_was_packed_comes_back(length: int, most: int) -> None:
    data = np.random.default_rng(length).integers(-most - 1, most + 1, length).astype(np.int8).tobytes()
    assert unpack(pack(data)) == data


def test_codes_of_4_bits_take_half_a_byte_and_others_a_whole_one() -> None:
    narrow, wide = np.tile(np.arange(-8, 8, dtype=np.int8), 4000), np.tile(np.arange(-128, 128, dtype=np.int16), 250)
    assert len(pack(narrow.tobytes())) < 0.52 * narrow.nbytes
    assert len(pack(wide.astype(np.int8).tobytes())) < 1.01 * wide.size


@pytest.fixture(scope="module")
def unpacked(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the 4-bit artifact with its library as it was compiled."""
    path = tmp_path_factory.mktemp("unpacked") / "model.pt2"
    with zipfile.ZipFile(shelf[W4].folder / "model.pt2") as shipped, zipfile.ZipFile(path, "w") as whole:
        for name in shipped.namelist():
            data = shipped.read(name)
            whole.writestr(name.removesuffix(".packed"), unpack(data) if name.endswith(".packed") else data)
    return path


@pytest.fixture(scope="module")
def codes(shelf: Shelf) -> dict[fx.Node, torch.Tensor]:
    """Codes by the convolution that reads them, of the 4-bit variant quantized once more."""
    module = pt2e.quantized(shelf.request(W4))
    assert isinstance(module, fx.GraphModule)
    convolutions = [node for node in module.graph.nodes if str(node.target) == "aten.conv2d.default"]
    read = {node: node.args[1].args[0] for node in convolutions if "dequantize" in str(node.args[1].target)}
    return {node: getattr(module, found.target) for node, found in read.items()}


def test_half_of_the_codes_bytes_are_saved(shelf: Shelf, unpacked: Path, codes: dict[fx.Node, torch.Tensor]) -> None:
    """But for pages that hold something else beside codes, such as a scale; empty ones of the library are saved too."""
    saved = unpacked.stat().st_size - shelf[W4].size_bytes
    assert saved > 0.45 * sum(each.numel() for each in codes.values())


def test_its_description_counts_half_a_byte_for_a_code(shelf: Shelf, codes: dict[fx.Node, torch.Tensor]) -> None:
    """FP32 of the kept layer, scales and biases are whole."""
    eight = shelf["ptq-inductor"].built.weights_bytes + 3 * (16 * 8 * 3 * 3)
    half = sum(each.numel() for each in codes.values()) // 2
    assert shelf[W4].built.weights_bytes == pytest.approx(eight - half, rel=0.02)


def test_predictions_are_those_of_the_library_as_compiled_bit_for_bit(shelf: Shelf, unpacked: Path) -> None:
    loaded = torch._C._aoti.AOTIModelPackageLoader(str(unpacked), "model", False, 1, -1)
    torch.set_num_threads(1)
    expected = loaded.run([torch.from_numpy(shelf.clips)])[0].numpy()
    np.testing.assert_array_equal(load_artifact(shelf[W4], allow_code=True)(shelf.clips), expected)


def test_loading_leaves_the_artifact_as_it_is_and_nothing_behind(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (shelf[W4].folder / "model.pt2").read_bytes()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    predict = load_artifact(shelf[W4], allow_code=True)
    assert not list(tmp_path.iterdir())
    assert np.isfinite(predict(shelf.clips)).all()
    assert (shelf[W4].folder / "model.pt2").read_bytes() == before


def test_the_artifact_says_how_its_weights_lie_there(shelf: Shelf) -> None:
    assert "two a byte" in shelf[W4].built.notes["packed"]
    assert "packed" not in shelf["ptq-inductor"].built.notes


def test_the_weights_that_are_shipped_are_the_codes_as_they_were_rounded(
    unpacked: Path, codes: dict[fx.Node, torch.Tensor]
) -> None:
    """In oneDNN's own order, in which they are compiled in."""
    with zipfile.ZipFile(unpacked) as package:
        (library,) = (package.read(name) for name in package.namelist() if name.endswith(".so"))
    assert len(codes) == 9
    for node, each in codes.items():
        stride, padding, dilation = (*node.args, *([1, 1], [0, 0], [1, 1])[len(node.args) - 3 :])[3:6]
        scales = torch.ones(len(each))
        ordered = torch.ops.onednn.qconv_prepack(each, scales, 1.0, 0, stride, padding, dilation, 1, None)
        held = ctypes.string_at(torch.ops.mkldnn.data_ptr(ordered), torch.ops.mkldnn._nbytes(ordered))
        assert library.find(held) >= 0, node.name
