"""Networks that come as graphs or as code, made into one program: float32 frames in, a number for each clip out."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from qray.engines.programs import MAX_BYTES, read_program
from qray.errors import QrayError, Unavailable, UsageError
from qray.importing.onnx_network import OnnxNetwork
from qray.importing.onnx_operators import Unsupported
from qray.model.graph_network import plain_graph
from qray.reasons import reason_of

#: Largest difference between a graph and what was made of it, relative to what it gives.
SAME = 1e-3
Shape = tuple[int | None, ...]


def layout_of(shape: Shape, name: str) -> str:
    """Which layout an input of this shape has; None stands for a size that is free.

    Raises:
        QrayError: none that qray knows.
    """
    if len(shape) == 4 and shape[1] == 3:
        return "frames"
    for layout, axis in (("BCTHW", 1), ("BTCHW", 2), ("BTHWC", 4)):
        if len(shape) == 5 and shape[axis] == 3:
            return layout
    raise QrayError(
        f"{name}: its input is {shape_words(shape)}; qray takes float32 frames of 3 channels: (B, 3, T, H, W), "
        "(B, T, 3, H, W), (B, T, H, W, 3), or (B*T, 3, H, W)"
    )


def shape_words(shape: Shape) -> str:
    """A shape as it is written."""
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


def clip_sizes(shape: Shape, layout: str) -> dict[str, int]:
    """{"frames", "image_size"} as far as a graph is made for no others."""
    axes = {"frames": (None, 2, 3), "BCTHW": (2, 3, 4), "BTCHW": (1, 3, 4), "BTHWC": (1, 2, 3)}[layout]
    frames, height, width = (None if axis is None else shape[axis] for axis in axes)
    if height != width:
        raise QrayError(f"its input has frames of {width} x {height} pixels; qray makes square ones")
    found = {"frames": frames, "image_size": height}
    return {key: size for key, size in found.items() if size is not None}


def example_of(layout: str, frames: int, size: int, clips: int = 2) -> torch.Tensor:
    """Seeded noise in a layout: float32, of so many clips."""
    shape = {
        "frames": (clips * frames, 3, size, size), "BCTHW": (clips, 3, frames, size, size),
        "BTCHW": (clips, frames, 3, size, size), "BTHWC": (clips, frames, size, size, 3),
    }[layout]  # fmt: skip
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def read_pt2(path: Path) -> tuple[fx.GraphModule, Shape]:
    """The module of a `torch.export` program, and the shape that its input has.

    Raises:
        QrayError: it is none, or has not one input and one output.
    """
    module = plain_graph(read_program(_bytes_of(path), path.name))
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    values = [node.meta.get("val") for node in inputs]
    if len(values) != 1 or not isinstance(values[0], torch.Tensor):
        raise QrayError(f"{path}: takes {len(values)} inputs; qray takes a network of one input, the frames of a clip")
    if values[0].dtype != torch.float32:
        raise QrayError(f"{path}: its input is {str(values[0].dtype).removeprefix('torch.')}; qray gives float32")
    return module, tuple(int(n) if isinstance(n, int) else None for n in values[0].shape)


def _bytes_of(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise QrayError(f"{path}: larger than the {MAX_BYTES / 2**30:.0f} GiB that qray reads")
    return path.read_bytes()


def read_onnx(path: Path) -> tuple[nn.Module, Shape, Callable[[np.ndarray], np.ndarray]]:
    """The module that an ONNX file comes to, the shape of its input, and what ONNX Runtime makes of one.

    Raises:
        QrayError: it is none, leads out of its folder, uses operators of others, or ones that cannot be converted.
            Unavailable: a package is missing.
    """
    try:
        import onnx
        import onnxruntime as ort
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed: pip install 'qray[onnx]'") from None
    _bytes_of(path)
    try:
        model = onnx.load(str(path), load_external_data=False)
        _check_onnx(model, path)
        shape = _onnx_input(model, path)
        model = onnx.load(str(path))
        module = OnnxNetwork(model, shape[0] if shape else None).eval()
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Unsupported as error:
        raise QrayError(f"{path}: qray does not read its {error}; export the network with torch.export") from None
    except QrayError:
        raise
    except Exception as error:
        raise QrayError(f"{path}: not a valid ONNX model ({reason_of(str(error))})") from None
    name = session.get_inputs()[0].name
    return module, shape, lambda x: session.run(None, {name: x})[0]


def _check_onnx(model: Any, path: Path) -> None:
    """Nothing but standard operators and numbers, of a size that can be, inside the model's own folder."""
    domains = {entry.domain for entry in model.opset_import} | {node.domain for node in model.graph.node}
    if foreign := sorted(domains - {"", "ai.onnx"}):
        raise QrayError(f"{path}: uses operators of {', '.join(foreign)}; qray reads standard ONNX operators only")
    if model.functions:
        raise QrayError(f"{path}: defines {len(model.functions)} operators of its own, which qray does not read")
    folder, total = path.resolve().parent, 0
    for tensor in _tensors(model.graph):
        total += 8 * int(np.prod([max(n, 1) for n in tensor.dims], dtype=np.float64)) if tensor.dims else 8
        outside = {entry.key: entry.value for entry in tensor.external_data}
        if location := outside.get("location"):
            file = folder / location
            if file.is_symlink() or not file.resolve().is_relative_to(folder) or not file.is_file():
                raise QrayError(
                    f"{path}: weights of {tensor.name} lie at {location!r}, not in a file of its own folder"
                )
    if total > MAX_BYTES:
        raise QrayError(f"{path}: its tensors claim {total / 2**30:.0f} GiB, more than qray reads")


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of a graph: its initializers, those of its nodes' attributes, and of graphs inside of it."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from [attribute.t, *attribute.tensors]
        for inner in [attribute.g, *attribute.graphs]:
            # A field that is not set reads as an empty one, without end.
            if inner.node or inner.initializer:
                yield from _tensors(inner)


def _onnx_input(model: Any, path: Path) -> Shape:
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise QrayError(
            f"{path}: has {len(inputs)} inputs and {len(model.graph.output)} outputs; qray takes a network of one "
            "input, the frames of a clip, and one output, a number for each"
        )
    kind = inputs[0].type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        raise QrayError(f"{path}: its input is {onnx.TensorProto.DataType.Name(kind.elem_type)}; qray gives float32")
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)


def read_code(where: str) -> tuple[nn.Module, str]:
    """The network that `package.module:build` returns when it is called, and the sha256 of its module's source. The
    working directory is looked at first, as `python -m` does.

    Raises:
        UsageError: there is nothing to call there. QrayError: it gave no network.
    """
    module_name, _, attribute = where.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
        build = getattr(module, attribute)
        source = inspect.getsource(module)
    except (ImportError, AttributeError, ValueError, OSError) as error:
        raise UsageError(f"--code {where!r}: {error}; expected package.module:function") from None
    finally:
        sys.path.pop(0)
    network = build()
    if not isinstance(network, nn.Module):
        raise QrayError(f"--code {where}: returned {type(network).__name__}; expected a torch.nn.Module")
    return network, hashlib.sha256(source.encode()).hexdigest()


def to_program(module: nn.Module, example: torch.Tensor, layout: str, train: bool, name: str) -> bytes:
    """The network as a program of any number of clips. example: float32, of two clips; train: as it is in training, so
    that it can go on.

    Raises:
        QrayError: torch cannot export it, it is made for one number of clips alone, or its output is not a number each.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # A program's module has no modes, and tells so by an error.
        if not isinstance(module, fx.GraphModule):
            module = module.train(train)
        try:
            batch = torch.export.Dim.DYNAMIC
            program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)
        except Exception as error:
            raise QrayError(
                f"{name}: cannot be exported for any number of clips ({reason_of(str(error))}); export it with a "
                "dynamic first dimension"
            ) from None
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    outputs = [values[name] for name in program.graph_signature.user_outputs]
    shapes = [tuple(int(n) if isinstance(n, int) else None for n in value.shape) for value in outputs]
    if len(shapes) != 1 or not (len(shapes[0]) == 1 or shapes[0][1:] == (1,)) or shapes[0][0] is not None:
        said = ", ".join(map(shape_words, shapes))
        what = "a classifier, or a network of several numbers" if len(shapes) == 1 else "several outputs"
        raise QrayError(
            f"{name}: its output is {said}: {what}; qray takes one number for each "
            f"{'frame' if layout == 'frames' else 'clip'}, (B,) or (B, 1)"
        )
    saved = io.BytesIO()
    torch.export.save(program, saved)
    return saved.getvalue()


def check_same(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference of what was made of a graph to what the graph gives.

    Raises:
        QrayError: it is another function.
    """
    difference = float((ours.flatten() - theirs.flatten()).abs().max())
    if not difference <= SAME * max(1.0, float(theirs.abs().max())):
        raise QrayError(
            f"{name}: what was made of it gives other outputs, by up to {difference:.3g}; qray cannot take it"
        )
    return difference
