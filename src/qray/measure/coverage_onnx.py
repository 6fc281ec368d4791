"""What ONNX Runtime executes: read from the optimized graph that its session runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def executed_int8(optimized: Path) -> tuple[set[str], int]:
    """(layers run as INT8 convolutions or matrix products, number of INT8 additions) of an optimized graph."""
    graph = _graph(optimized)
    layers = {node.input[3].split(".weight")[0] for node in graph.node if node.op_type in ("QLinearConv", "QGemm")}
    adds = sum(node.op_type == "QLinearAdd" for node in graph.node)
    return layers, adds


def quantized_after(optimized: Path, prefix: str) -> list[str] | None:
    """Quantizing or quantized nodes that depend on a value whose name begins with `prefix`; None if there is no such
    value, or if the output does not depend on one."""
    graph = _graph(optimized)
    reached = {name for node in graph.node for name in node.output if name.startswith(prefix)}
    found = []
    for node in graph.node:
        if reached.intersection(node.input) or reached.intersection(node.output):
            reached.update(node.output)
            # QLinearConv, QGemm, QuantizeLinear, DequantizeLinear, ConvInteger, DynamicQuantizeLinear, ...
            if node.op_type.startswith("Q") or "Quantize" in node.op_type or node.op_type.endswith("Integer"):
                found.append(node.name or node.op_type)
    return found if reached.issuperset(value.name for value in graph.output) else None


def initializer_bytes(model: Path) -> int:
    """Bytes of the parameters in a model file: codes, scales, zero points and biases."""
    from onnx import numpy_helper

    return sum(numpy_helper.to_array(tensor).nbytes for tensor in _graph(model).initializer)


def _graph(path: Path) -> Any:
    import onnx

    return onnx.load(str(path)).graph
