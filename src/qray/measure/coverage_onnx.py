"""What ONNX Runtime executes: read from the optimized graph that its session runs."""

from __future__ import annotations

from pathlib import Path


def executed_int8(optimized: Path) -> tuple[set[str], int]:
    """(layers run as INT8 convolutions or matrix products, number of INT8 additions) of an optimized graph."""
    import onnx

    graph = onnx.load(str(optimized)).graph
    layers = {node.input[3].split(".weight")[0] for node in graph.node if node.op_type in ("QLinearConv", "QGemm")}
    adds = sum(node.op_type == "QLinearAdd" for node in graph.node)
    return layers, adds


def initializer_bytes(model: Path) -> int:
    """Bytes of the parameters in a model file: codes, scales, zero points and biases."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(model)).graph
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)
