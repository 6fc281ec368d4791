"""ONNX Runtime on the CPU: FP32, and static INT8 in QDQ form with per-channel weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qray.engines.artifact import BuildRequest, Built, Predict
from qray.engines.parity import Outside, Simulated, one_by_one
from qray.engines.tail import PREFIX
from qray.scratch import scratch_folder

MODEL_FILE = "model.onnx"
INPUT, OUTPUT = "clips", "prediction"


def session_options(threads: int, u8u8: bool = False) -> Any:
    """Of every session. u8u8: `Variant.u8u8`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Threads that spin between calls would slow whatever is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Codes of weights become uint8 when a graph is loaded on a CPU on which int8 ones could overflow, and nowhere else:
    # https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    options.add_session_config_entry("session.x64quantprecision", str(int(u8u8)))
    return options


def session_of(
    path: Path | bytes, threads: int, optimized: Path | None = None, optimize: bool = True, u8u8: bool = False
) -> Any:
    """A session on the CPU, of a file or of what one holds. optimized: where its optimized graph is written."""
    import onnxruntime as ort

    options = session_options(threads, u8u8)
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    model = path if isinstance(path, bytes) else str(path)
    # This one quantizes the weights of a convolution that stands between two quantized ones: what keep_fp32 names.
    without = ["WeightBiasQuantization"]
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=without)


def build(request: BuildRequest, folder: Path) -> Built:
    """Write `model.onnx`.

    Raises:
        QrayError: an INT8 variant whose optimized graph runs convolutions or residual adds in FP32.
    """
    from qray.engines.layers import resolve_keep_fp32, total_macs
    from qray.engines.onnx_export import export_onnx
    from qray.engines.onnx_quantize import quantize
    from qray.engines.proof import prove

    target = folder / MODEL_FILE
    if request.variant.method == "fp32":
        layers = export_onnx(request, target)
        return Built(MODEL_FILE, initializer_bytes(target), 0.0, total_macs(layers))
    with scratch_folder("onnx") as scratch:
        source, optimized = scratch / "fp32.onnx", scratch / "optimized.onnx"
        layers = export_onnx(request, source)
        quantize(request, source, target, resolve_keep_fp32(layers, request.variant.keep_fp32))
        u8u8 = request.variant.u8u8
        deployed = runner(session_of(target, 1, optimized, u8u8=u8u8))
        built = prove(
            request, MODEL_FILE, initializer_bytes(target), layers, executed_int8(optimized),
            quantized_after(optimized, PREFIX), simulate(target), deployed, onednn=False, saturates=not u8u8,
        )  # fmt: skip
        return replace(built, notes=built.notes | {"u8u8": u8u8})


def simulate(path: Path) -> Simulated:
    """The quantized model in float: unoptimized, its graph computes in FP32 between its quantize/dequantize pairs."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    watched = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
            limits = np.iinfo(zero.dtype)
            low, high = ((int(end) - int(zero)) * float(scale) for end in (limits.min, limits.max))
            # A range from 0 stands for the ReLU that the quantizer took out: what it cuts off below is meant.
            watched.append((node.input[0], low if low < 0 else -np.inf, high, (high - low) / 255))
    known = {value.name for value in model.graph.output}
    names = list(dict.fromkeys(name for name, *_ in watched if name not in {INPUT, *known}))
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session, outside = session_of(model.SerializeToString(), 1, optimize=False), Outside()

    def predict(clips: np.ndarray) -> np.ndarray:
        predictions = []
        for clip in one_by_one(clips):
            prediction, *values = session.run([OUTPUT, *names], {INPUT: clip})
            activations = dict(zip(names, values, strict=True))
            for name, *bounds in watched:
                if name in activations:
                    outside.see(name, activations[name], *bounds)
            predictions.append(prediction)
        return np.concatenate(predictions)

    return Simulated(predict, outside)


def load(folder: Path, built: Built, threads: int, device: str) -> Predict:
    """Run the model with `threads` intra-op threads."""
    return runner(session_of(folder / built.model_file, threads, u8u8=bool(built.notes.get("u8u8"))))


def runner(session: Any) -> Predict:
    """What a session predicts."""

    def predict(clips: np.ndarray) -> np.ndarray:
        return session.run([OUTPUT], {INPUT: clips})[0]

    return predict


def layer_of(initializer: str) -> str:
    """Layer that a weight in the graph belongs to."""
    return initializer.split(".weight")[0]


def executed_int8(optimized: Path) -> tuple[set[str], int]:
    """(layers run as INT8 convolutions or matrix products, number of INT8 additions) of an optimized graph."""
    graph = _graph(optimized)
    layers = {layer_of(node.input[3]) for node in graph.node if node.op_type in ("QLinearConv", "QGemm")}
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
