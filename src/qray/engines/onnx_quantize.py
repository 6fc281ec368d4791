"""Static INT8 of an ONNX graph in QDQ form: as ONNX Runtime's kernels for the CPU want it, or as TensorRT does."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from qray.engines.artifact import BuildRequest
from qray.engines.onnxruntime import INPUT, OUTPUT, layer_of, session_of
from qray.engines.parity import one_by_one
from qray.engines.tail import PREFIX

#: What ONNX Runtime quantizes because it stands between convolutions: left out, each costs a conversion to FP32 and
#: back.
BETWEEN = ("Relu", "MaxPool")
#: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html: codes are signed
#: and symmetric, weights are quantized by a pair of their own, biases are floats, and what a layer gives is quantized
#: by what reads it.
FOR_TENSORRT = {
    "ActivationSymmetric": True, "WeightSymmetric": True, "AddQDQPairToWeight": True, "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": ["Conv", "Add"],
}  # fmt: skip


def quantize(request: BuildRequest, source: Path, target: Path, kept: tuple[str, ...], tensorrt: bool = False) -> None:
    """Write `target`: `source` with pairs of QuantizeLinear and DequantizeLinear, their ranges from the calibration
    clips, weights by channel. kept: layers that stay in FP32. tensorrt: as that wants it (`FOR_TENSORRT`)."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import save_tensors_data
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)
    prepared, ranges = source.with_name("prepared.onnx"), source.with_name("ranges.json")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(str(prepared))
    convolutions = {node.name: layer_of(node.input[1]) for node in model.graph.node if node.op_type == "Conv"}
    wanted = [name for name, layer in convolutions.items() if layer not in kept]
    between = [node.name for node in model.graph.node if node.op_type in BETWEEN and not tensorrt]
    adds = _residual_adds(model.graph)
    nodes = [name for name in wanted + adds + between if not name.startswith(PREFIX)]
    save_tensors_data(_observed(model, nodes, request), ranges)
    quantize_static(
        str(prepared), str(target), None, calibration_cache_path=ranges,
        quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=request.reduce_range and not tensorrt,
        activation_type=QuantType.QInt8 if tensorrt else QuantType.QUInt8, weight_type=QuantType.QInt8,
        nodes_to_quantize=nodes, extra_options=FOR_TENSORRT if tensorrt else None,
    )  # fmt: skip
    if tensorrt:
        model = onnx.load(str(target))
        _leave_convolved(model.graph, adds)
        onnx.save(model, str(target))


def _residual_adds(graph: Any) -> list[str]:
    """Names of the Add nodes whose two operands both depend on the clips."""
    activations, adds = {INPUT}, []
    for node in graph.node:
        if activations.intersection(node.input) and node.op_type != "Shape":
            activations.update(node.output)
            if node.op_type == "Add" and activations.issuperset(node.input):
                adds.append(node.name)
    return adds


def _leave_convolved(graph: Any, adds: Collection[str]) -> None:
    """Of each residual add, quantize only what the convolution before it does not give: TensorRT adds in the kernel of
    that convolution, before its sum is rounded, if nothing else reads it. Of two such operands the first stays as it
    is."""
    made = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)

    def convolved(name: str) -> str | None:
        """What a convolution gives that is quantized, and read back by this name, here alone; None for any other."""
        for kind in ("DequantizeLinear", "QuantizeLinear", "Conv"):
            if name not in made or made[name].op_type != kind or readers[name] > 1:
                return None
            name, found = made[name].input[0], name
        return found

    for node in graph.node:
        if node.name in adds and (found := [(at, name) for at, name in enumerate(map(convolved, node.input)) if name]):
            at, name = found[0]
            node.input[at] = name
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        read = {name for node in graph.node for name in node.input}
        for node in [each for each in graph.node if each.op_type == kind and not read.intersection(each.output)]:
            graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for tensor in [each for each in graph.initializer if each.name not in read]:
        graph.initializer.remove(tensor)


def _observed(model: Any, nodes: Collection[str], request: BuildRequest) -> Any:
    """Ranges of what these nodes read and make, as `quantize_static` takes them. Its own calibrators keep all of a
    tensor's values, and know no range of one that is constant."""
    import onnx
    import torch
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    from qray.engines.ranges import WIDE_PERCENTILE, observers

    model = onnx.shape_inference.infer_shapes(model)
    floats = {
        value.name for value in (*model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }  # fmt: skip
    chosen = {node.name: node for node in model.graph.node if node.name in set(nodes)}
    names = sorted(floats & {name for node in chosen.values() for name in (*node.input, *node.output)})
    variant = request.variant
    kind, more = variant.observer, {}
    if kind == "histogram":
        kind, more = "percentile", {"share": WIDE_PERCENTILE}
    watched = observers(kind, variant.range_margin, names, **more)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names if n != OUTPUT)
    session = session_of(model.SerializeToString(), 1, optimize=False)
    for batch in request.calibration:
        for clip in one_by_one(batch.numpy()):
            for observer, values in zip(watched.values(), session.run(names, {INPUT: clip}), strict=True):
                observer(torch.from_numpy(values))
    bounds = {name: map(np.float32, observer.bounds()) for name, observer in watched.items()}
    found = {name: TensorData(lowest=np.array(low), highest=np.array(high)) for name, (low, high) in bounds.items()}
    return TensorsData(CalibrationMethod.MinMax, found)
