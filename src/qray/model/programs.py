"""Networks that come as exported graphs: read without running what a stranger wrote, made to look like any other, and
parted where their features are."""

from __future__ import annotations

import io
import json
import logging
import math
import operator
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from qray.errors import QrayError
from qray.reasons import reason_of

aten = torch.ops.aten
#: Operators that do something else in training, and which of their arguments says so.
TRAINING_FLAG = {aten.batch_norm.default: 5, aten.dropout.default: 2}
#: What a graph may call: PyTorch's own operators, arithmetic on sizes, and nothing that opens files.
CALLS = re.compile(
    r"torch\.ops\.(aten|torchvision|quantized_decomposed)\.(?!from_file)\w+(\.\w+)?|torch\.sym_\w+|math\.(ceil|floor|trunc)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|eq|ne|lt|le|gt|ge|getitem|and_|or_|not_)"
)
#: Symbols and names in an expression of sizes, which SymPy would evaluate as Python.
SYMBOL = re.compile(r"Symbol\('[su]\d+'(, \w+=(True|False))*\)")
SIZE_NAMES = re.compile(
    r"[su]\d+|u?int_oo|oo|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|IntTrueDiv|TruncToInt"
    r"|ToFloat|Eq|Ne|Equality|Unequality|And|Or|Not|StrictGreaterThan|GreaterThan|StrictLessThan|LessThan|true|false"
)
MAX_BYTES = 8 * 2**30
#: What the operators of a flat graph were before it was exported.
SOURCES: dict[Any, Any] = {
    aten.conv1d: nn.Conv1d, aten.conv2d: nn.Conv2d, aten.conv3d: nn.Conv3d, aten.linear: nn.Linear,
    aten.batch_norm: nn.BatchNorm2d, aten.relu: nn.ReLU, aten.relu_: nn.ReLU, aten.hardtanh: nn.Hardtanh,
    aten.hardtanh_: nn.Hardtanh, aten.relu6: nn.ReLU6, aten.hardswish: nn.Hardswish, aten.hardswish_: nn.Hardswish,
    aten.silu: nn.SiLU, aten.silu_: nn.SiLU, aten.add: torch.add, aten.add_: torch.add,
}  # fmt: skip


def _texts(value: Any) -> Iterator[str]:
    """Expressions anywhere in a program's JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "expr_str":
                yield str(inner)
            else:
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _calls(value: Any) -> Iterator[str]:
    """What the graph, or one inside of it, calls."""
    if isinstance(value, dict):
        if "target" in value and "inputs" in value:
            yield str(value["target"])
        for inner in value.values():
            yield from _calls(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _calls(inner)


def _harmless(value: Any) -> Any:
    """A program's JSON without what it remembers of the code that it was made of: nothing of that is needed, some of
    it is code (guards), and all of it names the paths of another machine."""
    if isinstance(value, list):
        return [_harmless(item) for item in value]
    if not isinstance(value, dict):
        return value
    blank: dict[str, Any] = {"metadata": {}, "guards_code": [], "treespec_namedtuple_fields": {}}
    return {key: blank[key] if key in blank and inner else _harmless(inner) for key, inner in value.items()}


def _specs(value: Any) -> Iterator[Any]:
    """What a graph's inputs and outputs are containers of, as read from the text that says it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("in_spec", "out_spec") and isinstance(inner, str):
                yield json.loads(inner)
            else:
                yield from _specs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _specs(inner)


def _is_plain(spec: Any) -> bool:
    """Whether a container, and all within it, is a tuple, a list, or a mapping of names. PyTorch imports the modules
    that others name."""
    if isinstance(spec, list):
        return all(_is_plain(each) for each in spec)
    if not isinstance(spec, dict):
        return isinstance(spec, int)
    context = json.loads(spec.get("context") or "null")
    names = context is None or (isinstance(context, list) and all(isinstance(each, str) for each in context))
    kinds = (None, "builtins.tuple", "builtins.list", "builtins.dict")
    return spec.get("type") in kinds and names and _is_plain(spec.get("children_spec", []))


def _check_program(program: dict[str, Any], name: str) -> None:
    if not all(map(_is_plain, _specs(program))):
        raise QrayError(f"{name}: its inputs or outputs are containers other than tuples, lists and mappings of names")
    for target in _calls(program):
        if not CALLS.fullmatch(target):
            raise QrayError(f"{name}: its graph calls {target}; qray reads graphs of PyTorch's own operators only")
    for text in _texts(program):
        rest = SYMBOL.sub("s0", text)
        unknown = [word for word in re.findall(r"[A-Za-z_]\w*", rest) if not SIZE_NAMES.fullmatch(word)]
        if unknown or not re.fullmatch(r"[\w\s+\-*/%(),.<>=|&~]*", rest):
            raise QrayError(f"{name}: {text[:60]!r} is no expression of sizes")


def _check_payload(config: dict[str, Any], name: str) -> None:
    total = 0
    for key, entry in config.get("config", {}).items():
        if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
            raise QrayError(f"{name}: {key} is stored as a Python object, not as numbers; qray does not unpickle it")
        sizes = [size.get("as_int", 0) for size in (entry.get("tensor_meta") or {}).get("sizes", [])]
        total += 8 * math.prod(sizes)
    if total > MAX_BYTES:
        raise QrayError(f"{name}: its tensors claim {total / 2**30:.0f} GiB, more than qray reads")


def _cleaned(data: bytes, name: str, with_weights: bool) -> bytes:
    """The archive with what is needed of it and nothing else; without weights, they are entries of no bytes, for which
    PyTorch puts zeros.

    Raises:
        QrayError: it is no program of `torch.export.save`, or holds more than numbers and a graph of known operators.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if any(entry.startswith(("code/", "constants.pkl")) for entry in entries):
            raise QrayError(f"{name}: a TorchScript file, which holds code; save the state_dict, or export the model")
        graphs = [entry for entry in entries if entry.startswith("models/")]
        if graphs != ["models/model.json"]:
            raise QrayError(
                f"{name}: holds {len(graphs)} programs named {', '.join(graphs) or 'nothing'}; qray reads one, as "
                "torch.export.save writes it (torch 2.8 or newer)"
            )
        if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
            raise QrayError(f"{name}: larger than {MAX_BYTES / 2**30:.0f} GiB unpacked")
        program = _harmless(json.loads(archive.read(entries["models/model.json"])))
        _check_program(program, name)
        configs = {
            kind: json.loads(archive.read(entries[f"data/{kind}/model_{kind}_config.json"]))
            for kind in ("weights", "constants")
        }
        root = archive.infolist()[0].filename.partition("/")[0]
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as target:

            def put(entry: str, content: bytes) -> None:
                target.writestr(f"{root}/{entry}", content)

            for entry in ("archive_format", "archive_version", "byteorder", ".data/version", "version"):
                if entry in entries:
                    put(entry, archive.read(entries[entry]))
            put("models/model.json", json.dumps(program).encode())
            # What it was exported with, which would be unpickled, is not needed.
            put("data/sample_inputs/model.pt", b"")
            for kind, config in configs.items():
                _check_payload(config, name)
                put(f"data/{kind}/model_{kind}_config.json", json.dumps(config).encode())
                for path in dict.fromkeys(entry["path_name"] for entry in config["config"].values()):
                    kept = with_weights or kind == "constants"
                    put(f"data/{kind}/{path}", archive.read(entries[f"data/{kind}/{path}"]) if kept else b"")
        return written.getvalue()
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise QrayError(f"{name}: not a program as torch.export.save writes it ({reason_of(str(error))})") from None


def without_weights(data: bytes, name: str) -> bytes:
    """The graph alone, as `read_program` takes it."""
    return _cleaned(data, name, with_weights=False)


def read_program(data: bytes, name: str) -> torch.export.ExportedProgram:
    """A program from the bytes of a `.pt2` file, of which no code is run and nothing is unpickled.

    Raises:
        QrayError: it is none, or holds what qray does not read.
    """
    cleaned = _cleaned(data, name, with_weights=True)
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    try:
        return torch.export.load(io.BytesIO(cleaned))
    except Exception as error:
        raise QrayError(
            f"{name}: torch {torch.__version__} cannot read this program ({reason_of(str(error))})"
        ) from None


def plain_graph(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The module of a program, without assertions about its input, and with convolutions and batch-norms as `nn` calls
    them where it was decomposed into core operators."""
    module: fx.GraphModule = program.module(check_guards=False)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and "assert" in str(node.target) and not node.users:
            module.graph.erase_node(node)
        elif node.target == aten.convolution.default and not node.args[6]:
            rank = node.meta["val"].dim() - 2
            node.target = getattr(aten, f"conv{rank}d").default
            node.args = (*node.args[:6], node.args[8])
        elif str(node.target).startswith("aten._native_batch_norm_legit_no_training"):
            _plain_batch_norm(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _plain_batch_norm(node: fx.Node) -> None:
    x, weight, bias, mean, variance, momentum, epsilon = node.args
    with node.graph.inserting_before(node):
        arguments = (x, weight, bias, mean, variance, False, momentum, epsilon, True)
        norm = node.graph.call_function(aten.batch_norm.default, arguments)
    for reader in list(node.users):
        if reader.args[1] == 0:
            norm.meta = dict(reader.meta)
            reader.replace_all_uses_with(norm)
        node.graph.erase_node(reader)
    node.graph.erase_node(node)


class Part(nn.Module):
    """Part of a graph as a module: `train` and `eval` reach its batch-norms and dropouts, as they would have been set
    before it was exported."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whatever the graph takes and gives."""
        return self.graph(x)

    def train(self, mode: bool = True) -> Part:
        """As of any module."""
        self.training = mode
        switch_training(self.graph, mode)
        return self


def switch_training(module: fx.GraphModule, training: bool) -> None:
    """Set the flag of every batch-norm and dropout of a graph.

    torchao's `move_exported_model_to_train` and `_to_eval` export six patterns each time, which takes them a second,
    and put others in the places of what they find.
    """
    for node in module.graph.nodes:
        if node.target in TRAINING_FLAG:
            node.update_arg(TRAINING_FLAG[node.target], training)
    module.recompile()


def with_sources(module: fx.GraphModule) -> fx.GraphModule:
    """The module of an exported network, in which calls name the functions by which torchao's quantizer looks for what
    it may quantize, each by itself.

    Dynamo would name them, in five times the time, and not in a graph that was imported.
    """
    for node in module.graph.nodes:
        source = (
            SOURCES.get(getattr(node.target, "overloadpacket", node.target)) if node.op == "call_function" else None
        )
        if source is not None:
            node.meta["source_fn_stack"] = [(node.name, source)]
    return module


def parted(module: fx.GraphModule, name: str) -> tuple[Part, Part]:
    """The backbone and the head of a network: up to its features and from there on.

    The features are the first value of one number per channel, (N, C) or (N, C, 1, ...), through which everything must
    pass that reaches the output.

    Raises:
        QrayError: it has not one input and one output, or no such value.
    """
    clips, output = _ends(module, name)
    reach = _ancestors(output)
    candidates = (node for node in module.graph.nodes if node in reach and _is_vector(node))
    features = next((node for node in candidates if not _passes_by(node, clips, output)), None)
    if features is None:
        raise QrayError(
            f"{name}: nowhere does all that its output depends on stand as one number per channel; qray takes networks "
            "that pool over positions before their head"
        )
    below, above = _ancestors(features), _ancestors(output, features)
    backbone, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in (node for node in module.graph.nodes if node in below):
        copied[node] = backbone.node_copy(node, copied.__getitem__)
    backbone.output(copied[features])
    head = fx.Graph()
    entry = head.placeholder("features")
    entry.meta, copied = dict(features.meta), {features: entry}
    for node in (node for node in module.graph.nodes if node in above and node not in (features, clips)):
        if node.target == aten.sym_size.int and node.args == (clips, 0):
            # The head does not see the clips, of which it only asks how many there are.
            rows = head.call_function(aten.sym_size.int, (entry, 0))
            copied[node] = head.call_function(operator.floordiv, (rows, _rows_per_clip(features, clips)))
        else:
            copied[node] = head.node_copy(node, copied.__getitem__)
    head.output(copied[output])
    return Part(fx.GraphModule(module, backbone)), Part(fx.GraphModule(module, head))


def _ends(module: fx.GraphModule, name: str) -> tuple[fx.Node, fx.Node]:
    """The input, and what is returned."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    returned = tree_leaves(module.graph.output_node().args)
    if len(inputs) != 1 or len(returned) != 1:
        raise QrayError(
            f"{name}: has {len(inputs)} inputs and {len(returned)} outputs; qray takes a network of one input, the "
            "frames of a clip, and one output, a number for each"
        )
    return inputs[0], returned[0]


def _ancestors(node: fx.Node, end: fx.Node | None = None) -> set[fx.Node]:
    """The node and all that it depends on, but for what `end` depends on."""
    found, left = {node}, [node]
    while left:
        if (here := left.pop()) is not end:
            new = set(here.all_input_nodes) - found
            found |= new
            left += new
    return found


def _is_vector(node: fx.Node) -> bool:
    value = node.meta.get("val")
    shape = value.shape if isinstance(value, torch.Tensor) else ()
    return len(shape) >= 2 and isinstance(shape[0], torch.SymInt) and all(size == 1 for size in shape[2:])


def _passes_by(node: fx.Node, clips: fx.Node, output: fx.Node) -> bool:
    """Whether numbers of the clips reach the output by another way than this node; sizes are no such numbers."""
    seen, left = {clips, node}, [clips]
    while left:
        for reader in left.pop().users:
            if reader is output:
                return True
            if reader not in seen and isinstance(reader.meta.get("val"), torch.Tensor | list | tuple):
                seen.add(reader)
                left.append(reader)
    return False


def _rows_per_clip(features: fx.Node, clips: fx.Node) -> int:
    """Rows of the features for each of the input's, from the symbols of their sizes."""
    rows, batch = features.meta["val"].shape[0], clips.meta["val"].shape[0]
    return int(rows.node.expr / batch.node.expr)
