"""Graphs that others exported: read without running what they hold, parted at their features, the same function."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.imports import FRAMES, SIZE, TheirFrameNetwork, TheirNetwork
from torch import nn

from qray.engines.programs import read_program, without_weights
from qray.errors import QrayError, UsageError
from qray.importing.graphs import layout_of, read_code, read_onnx, read_pt2, to_program
from qray.model.graph_network import parted, plain_graph

CLIPS = torch.randn((2, 3, FRAMES, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
BATCH = {0: torch.export.Dim.DYNAMIC}


def _exported(network: nn.Module, example: torch.Tensor, dynamic: bool = True) -> torch.export.ExportedProgram:
    return torch.export.export(network.eval(), (example,), dynamic_shapes=(BATCH,) if dynamic else None)


def _bytes(program: torch.export.ExportedProgram) -> bytes:
    saved = io.BytesIO()
    torch.export.save(program, saved)
    return saved.getvalue()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return TheirNetwork().eval()


@pytest.fixture(scope="module")
def exported(network: nn.Module) -> bytes:
    return _bytes(_exported(network, CLIPS))


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_program_is_parted_at_its_features_and_stays_the_same_function(network: nn.Module, decomposed: bool) -> None:
    program = _exported(network, CLIPS)
    data = _bytes(program.run_decompositions() if decomposed else program)
    backbone, head = parted(plain_graph(read_program(data, "their.pt2")), "their.pt2")
    features = backbone(CLIPS)
    assert features.shape == (2, 32)
    torch.testing.assert_close(head(features), network(CLIPS))
    # The tail is what comes after the features: here both layers of their head.
    assert {name.split(".")[1] for name in head.state_dict()} == {"regressor"}
    # Convolutions as any other network has them, whatever they were decomposed into.
    called = {str(node.target) for node in backbone.graph.graph.nodes}
    assert "aten.conv3d.default" in called
    assert "aten.convolution.default" not in called


def test_a_graph_without_weights_takes_them_back(network: nn.Module, exported: bytes) -> None:
    bare = without_weights(exported, "their.pt2")
    assert len(bare) < len(exported)
    parts = [parted(plain_graph(read_program(data, "their.pt2")), "their.pt2") for data in (exported, bare)]
    for whole, empty in zip(*parts, strict=True):
        empty.load_state_dict(whole.state_dict())
    backbone, head = parts[1]
    torch.testing.assert_close(head(backbone(CLIPS)), network(CLIPS))


def test_nothing_of_the_machine_that_exported_it_is_left(exported: bytes) -> None:
    def whole(data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return b"".join(archive.read(name) for name in archive.namelist())

    assert b"support/imports.py" in whole(exported)
    assert b"support/imports.py" not in whole(without_weights(exported, "their.pt2"))


def _rewritten(exported: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """The archive with its entries changed, each given by name and content."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(exported)) as source, zipfile.ZipFile(changed, "w") as target:
        for info in source.infolist():
            target.writestr(info.filename, change(info.filename, source.read(info)))
    return changed.getvalue()


def _changed(exported: bytes, change: Callable[[dict[str, Any]], None], entry: str = "models/model.json") -> bytes:
    """The archive with what one of its JSON entries says changed; by default its graph."""

    def rewrite(name: str, data: bytes) -> bytes:
        if not name.endswith(entry):
            return data
        content = json.loads(data)
        change(content)
        return json.dumps(content).encode()

    return _rewritten(exported, rewrite)


def _nodes(graph: dict[str, Any]) -> list[dict[str, Any]]:
    return graph["graph_module"]["graph"]["nodes"]


def _calls(target: str) -> Callable[[dict[str, Any]], None]:
    return lambda graph: _nodes(graph)[0].update(target=target)


def _sizes(text: str) -> Callable[[dict[str, Any]], None]:
    def change(graph: dict[str, Any]) -> None:
        for value in graph["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = text

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_calls("torch.load"), "calls torch.load"),
        (_calls("torch.ops.aten.from_file.default"), "calls torch.ops.aten.from_file"),
        (_calls("torch.hub.load"), "calls torch.hub.load"),
        (_calls("_operator.methodcaller"), "calls _operator.methodcaller"),
        (_sizes("__import__('os').system('touch RAN')"), "no expression of sizes"),
        (_sizes("open(chr(82))"), "no expression of sizes"),
    ],
    ids=["torch.load", "from_file", "hub", "operator", "import", "open"],
)
def test_a_program_that_would_run_code_is_refused(
    exported: bytes,
    change: Callable[[dict[str, Any]], None],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QrayError, match=said):
        read_program(_changed(exported, change), "hostile.pt2")
    assert list(tmp_path.iterdir()) == []


def test_guards_are_code_and_never_run(exported: bytes, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    hostile = _changed(exported, lambda graph: graph.update(guards_code=[f"open({str(marker)!r}, 'w')"]))
    read_program(hostile, "hostile.pt2").module()(CLIPS)
    assert not marker.exists()


def test_pickled_inputs_and_tensors_are_not_unpickled(exported: bytes, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()
    read_program(_rewritten(exported, lambda name, data: evil if "sample_inputs" in name else data), "hostile.pt2")
    assert not marker.exists()

    def pickled(config: dict[str, Any]) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    with pytest.raises(QrayError, match="does not unpickle"):
        read_program(_changed(exported, pickled, "model_weights_config.json"), "hostile.pt2")


@pytest.mark.parametrize("kind", ["enum", "defaultdict"])
def test_a_program_that_names_a_module_imports_nothing(
    exported: bytes, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its input is a container of is told by text that PyTorch reads types and modules from."""
    marker = tmp_path / "ran"
    (tmp_path / f"hostile_{kind}.py").write_text(f"open({str(marker)!r}, 'w')\nX = int\n")
    monkeypatch.syspath_prepend(tmp_path)
    leaf = {"type": None, "context": None, "children_spec": []}
    if kind == "enum":
        context = json.dumps([{"__enum__": True, "fqn": "hostile_enum:X", "name": "Y"}])
        spec = {"type": "builtins.dict", "context": context, "children_spec": [leaf]}
    else:
        context = json.dumps({"default_factory_module": "hostile_defaultdict", "default_factory_name": "X",
                              "dict_context": "[]"})  # fmt: skip
        spec = {"type": "collections.defaultdict", "context": context, "children_spec": []}

    def change(graph: dict[str, Any]) -> None:
        calls = graph["graph_module"]["module_call_graph"]
        calls[0]["signature"]["in_spec"] = json.dumps([1, spec])

    with pytest.raises(QrayError, match=r"hostile\.pt2: .*containers"):
        read_program(_changed(exported, change), "hostile.pt2")
    assert not marker.exists()


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x05\x06" + b"\0" * 18])
def test_what_is_no_program_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(QrayError, match=r"none\.pt2"):
        read_program(data, "none.pt2")


def test_an_onnx_file_becomes_a_program(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "their.onnx"
    # As most are: for one clip alone.
    torch.onnx.export(network, (CLIPS[:1],), str(path), dynamo=True, verbose=False, external_data=False)
    module, shape, run = read_onnx(path)
    assert layout_of(shape, path.name) == "BCTHW"
    program = to_program(module, CLIPS, "BCTHW", False, path.name)
    backbone, head = parted(plain_graph(read_program(program, "network.pt2")), "network.pt2")
    torch.testing.assert_close(head(backbone(CLIPS)), network(CLIPS), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(run(CLIPS[:1].numpy())), network(CLIPS[:1]), rtol=1e-4, atol=1e-4)


def _external(path: Path, location: str) -> None:
    import onnx

    model = onnx.load(str(path))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    path.write_bytes(model.SerializeToString())


def _external_constant(path: Path, location: str) -> None:
    """The same of a tensor that is a node's attribute."""
    import onnx
    from onnx import helper

    model = onnx.load(str(path))
    tensor = helper.make_tensor("value", onnx.TensorProto.FLOAT, [4], [0.0] * 4)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=tensor))
    model.graph.node[0].attribute[0].t.ClearField("float_data")
    model.graph.node[0].attribute[0].t.data_location = onnx.TensorProto.EXTERNAL
    entry = model.graph.node[0].attribute[0].t.external_data.add()
    entry.key, entry.value = "location", location
    path.write_bytes(model.SerializeToString())


def _foreign(path: Path, location: str) -> None:
    import onnx

    model = onnx.load(str(path))
    model.graph.node[0].domain = location
    model.opset_import.add(domain=location, version=1)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("change", "given", "said"),
    [
        (_external, "../secret.bin", "not in a file of its own folder"),
        (_external, "/etc/hostname", "not in a file of its own folder"),
        (_external, "link.bin", "not in a file of its own folder"),
        (_external_constant, "../secret.bin", "not in a file of its own folder"),
        (_foreign, "com.example", "operators of com.example"),
    ],
)
def test_an_onnx_file_stays_in_its_folder_and_to_standard_operators(
    tmp_path: Path, change: Callable[[Path, str], None], given: str, said: str
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = folder / "small.onnx"
    torch.onnx.export(
        TheirFrameNetwork().eval(), (torch.zeros(1, 3, 16, 16),), str(path), dynamo=True, verbose=False,
        external_data=False,
    )  # fmt: skip
    change(path, given)
    with pytest.raises(QrayError, match=said):
        read_onnx(path)


class _Two(nn.Module):
    def __init__(self, outputs: int, several: bool = False) -> None:
        super().__init__()
        self.body, self.several = TheirFrameNetwork(), several
        self.body.top = nn.Linear(32, outputs)

    def forward(self, x: torch.Tensor) -> Any:
        """A classifier's scores, or two outputs."""
        found = self.body(x)
        return (found, found) if self.several else found


@pytest.mark.parametrize(
    ("network", "said"),
    [(_Two(5), r"\(\?, 5\): a classifier"), (_Two(1, several=True), "several outputs")],
    ids=["classifier", "two outputs"],
)
def test_what_is_no_regressor_is_refused(network: nn.Module, said: str) -> None:
    with pytest.raises(QrayError, match=said):
        to_program(network, torch.zeros(2, 3, 16, 16), "frames", False, "their.pt2")


@pytest.mark.parametrize("shape", [(None, 3, 16), (None, 1, 8, 64, 64), (None, 5, 64, 64)])
def test_an_input_of_another_rank_is_refused(shape: tuple[int | None, ...]) -> None:
    with pytest.raises(QrayError, match="qray takes float32 frames of 3 channels"):
        layout_of(shape, "their.pt2")


class _OneClip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = TheirNetwork()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of a batch of one alone."""
        return self.body(x.view(1, 3, FRAMES, SIZE, SIZE))


def test_a_graph_for_one_clip_alone_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "one.pt2"
    torch.export.save(_exported(_OneClip(), CLIPS[:1], dynamic=False), path)
    module, _ = read_pt2(path)
    with pytest.raises(QrayError, match="dynamic first dimension"):
        to_program(module, CLIPS, "BCTHW", False, path.name)


def test_code_is_run_where_it_is_named_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs_abc.py").write_text("import torch\n\ndef build():\n    return torch.nn.Linear(3, 1)\n")
    monkeypatch.chdir(tmp_path)
    module, sha256 = read_code("theirs_abc:build")
    assert isinstance(module, nn.Linear)
    assert len(sha256) == 64
    with pytest.raises(UsageError, match=r"package\.module:function"):
        read_code("theirs_abc:nothing")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x07" * 9])
def test_what_is_no_onnx_file_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "none.onnx").write_bytes(content)
    with pytest.raises(QrayError, match=r"none\.onnx"):
        read_onnx(tmp_path / "none.onnx")
