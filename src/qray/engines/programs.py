"""Programs of `torch.export`, whoever wrote them, read without running what they hold."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch

from qray.errors import QrayError
from qray.reasons import reason_of

aten = torch.ops.aten
#: What a graph may call: PyTorch's own operators, torchao's of quantization, qray's, arithmetic on sizes, and nothing
#: that opens files.
CALLS = re.compile(
    r"torch\.ops\.(aten|torchvision|quantized_decomposed)\.(?!from_file)\w+(\.\w+)?|torch\.sym_\w+|math\.(ceil|floor|trunc)"
    r"|torch\.ops\.torchao\.(choose_qparams|quantize|dequantize)_affine(\.\w+)?|torch\.ops\.qray\.int8_conv2d(\.default)?"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|eq|ne|lt|le|gt|ge|getitem|and_|or_|not_)"
)
#: Symbols and names in an expression of sizes, which SymPy would evaluate as Python.
SYMBOL = re.compile(r"Symbol\('[su]\d+'(, \w+=(True|False))*\)")
SIZE_NAMES = re.compile(
    r"[su]\d+|u?int_oo|oo|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|IntTrueDiv|TruncToInt"
    r"|ToFloat|Eq|Ne|Equality|Unequality|And|Or|Not|StrictGreaterThan|GreaterThan|StrictLessThan|LessThan|true|false"
)
MAX_BYTES = 8 * 2**30


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
