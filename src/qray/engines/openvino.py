"""OpenVINO on the CPU: FP32, bf16, and static INT8 by NNCF."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qray.engines.artifact import BuildRequest, Built, Predict
from qray.engines.parity import Outside, Simulated, one_by_one
from qray.engines.tail import PREFIX
from qray.errors import QrayError
from qray.measure.isa import BF16

if TYPE_CHECKING:
    # An artifact of this engine loads without PyTorch.
    from qray.engines.layers import Layers

# OpenVINO and NNCF tell Intel by Google Analytics that they were imported and what they were asked for, without asking
# first, from a process that they fork for it: beside whatever is measured, and out of a hospital. Without the package
# that does it they do not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

MODEL_FILE = "model.xml"
#: What the names of residual additions and of average pools begin with, and what the latter are converted to.
ADD, POOL = "residual.", "pool."
POOLS = ("AvgPool", "AdaptiveAvgPool", "ReduceMean")


def _named_model(request: BuildRequest) -> tuple[Any, Layers]:
    """The model in OpenVINO's form, its convolutions named after their layers, its residual adds and pools, and the
    nodes of the tail, numbered; and the layers."""
    import openvino as ov

    from qray.engines.onnx_export import folded

    program, layers = folded(request)
    model = ov.convert_model(program)
    # Conversion forgets the clip's shape, and where the plugin (2026.4.1) does not know the number of channels, a
    # FakeQuantize that has taken in a shift of the channels shifts them all by that of the first.
    clip = request.clip
    model.reshape([-1, clip.frames, clip.image_size, clip.image_size, 3])
    features = model.get_results()[1]
    tail = {features.input_value(0).get_node().get_name()}
    model.remove_result(features)
    parameters = {name.removesuffix(".weight"): value for name, value in program.named_parameters()}
    weights = {layer.name: parameters[layer.name].detach().numpy() for layer in layers if layer.name in parameters}
    adds, pools, activations = 0, 0, {node.get_name() for node in model.get_parameters()}
    for node in model.get_ordered_ops():
        sources = [value.get_node().get_name() for value in node.input_values()]
        if activations.intersection(sources) and node.get_type_name() != "ShapeOf":
            activations.add(node.get_name())
        if tail.intersection(sources) and node.get_type_name() != "Result":
            tail.add(node.get_name())
            node.set_friendly_name(f"{PREFIX}{len(tail)}")
        elif node.get_type_name() in ("Convolution", "GroupConvolution"):
            constant = node.input_value(1).get_node()
            while constant.get_type_name() != "Constant":
                constant = constant.input_value(0).get_node()
            data = constant.get_data().ravel()
            name = next((n for n, w in weights.items() if np.array_equal(w.ravel(), data)), None)
            if name is None:
                raise QrayError(f"OpenVINO's convolution {node.get_friendly_name()} is no layer of the model")
            node.set_friendly_name(name)
        elif node.get_type_name() == "Add" and activations.issuperset(sources):
            node.set_friendly_name(f"{ADD}{adds}")
            adds += 1
        elif node.get_type_name() in POOLS and activations.intersection(sources):
            node.set_friendly_name(f"{POOL}{pools}")
            pools += 1
    return model, layers


def compile_for_cpu(model: Any, method: str, threads: int) -> Any:
    """A model, or the path of one, compiled to run in the precision that a method says."""
    import openvino as ov

    # OpenVINO's default precision is whatever the CPU likes best; a variant is what its name says.
    precision = "bf16" if method == "bf16" else "f32"
    properties = {
        "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # Otherwise it binds its threads to the first cores, every process to the same ones: two processes of one thread
        # each predicted 633 clips a second on two cores, one alone 689, and two that are not bound 1,353.
        "ENABLE_CPU_PINNING": False,
    }  # fmt: skip
    return ov.Core().compile_model(model, "CPU", properties)


def build(request: BuildRequest, folder: Path) -> Built:
    """Write `model.xml` and `model.bin`.

    Raises:
        QrayError: an INT8 variant whose execution graph runs convolutions or residual adds in FP32.
    """
    import openvino as ov

    from qray.engines.layers import resolve_keep_fp32, total_macs
    from qray.engines.nncf_quantize import quantize
    from qray.engines.proof import prove

    method, path = request.variant.method, folder / MODEL_FILE
    model, layers = _named_model(request)
    names = {layer.name for layer in layers}
    if method == "bf16":
        _sum_products(model)
    if method != "ptq":
        ov.save_model(model, path, compress_to_fp16=method == "bf16")
        compiled = compile_for_cpu(model, method, 1)
        if method == "bf16":
            _check_bf16(compiled, names)
        needs = (BF16,) if method == "bf16" else ()
        return Built(MODEL_FILE, constant_bytes(path), 0.0, total_macs(layers), needs, run_by(compiled))
    kept = resolve_keep_fp32(layers, request.variant.keep_fp32, unweighted=True)
    quantized = quantize(request, model, _numbered(layers, kept))
    ov.save_model(quantized, path, compress_to_fp16=False)
    compiled = compile_for_cpu(quantized, method, 1)
    built = prove(
        request, MODEL_FILE, constant_bytes(path), layers, executed_in(compiled, {"i8", "u8"}, names),
        quantized_after(compiled, PREFIX), _simulate(quantized, fused_before_adds(compiled)), _runner(compiled),
        onednn=True, left=_not_quantized(quantized, layers) - {*kept},
    )  # fmt: skip
    return replace(built, notes=built.notes | run_by(compiled))


def _sum_products(model: Any) -> None:
    """Write the tail's products of matrices as sums of products. The plugin (2026.4.1) computes in FP32 what comes
    after the last product of matrices, and all before it in bf16; so the tail stays in FP32, and nothing else."""
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and node.get_friendly_name().startswith(PREFIX):
            left, right = node.input_values()
            if not node.get_attributes()["transpose_b"]:
                right = ops.transpose(right, np.array([1, 0])).output(0)
            total = ops.reduce_sum(ops.multiply(ops.unsqueeze(left, np.array(-2)), right), np.array([-1]))
            total.set_friendly_name(node.get_friendly_name())
            node.output(0).replace(total.output(0))


def _check_bf16(compiled: Any, names: Collection[str]) -> None:
    if not executed_in(compiled, {"bf16"}, names)[0]:
        raise QrayError("OpenVINO runs no convolution in bf16 on this CPU, whatever it was asked for")
    if late := [original for _, original, facts in _executed(compiled) if facts["runtimePrecision"].lower() == "bf16"
                and any(name.startswith(PREFIX) for name in original)]:  # fmt: skip
        raise QrayError(f"OpenVINO runs {len(late)} nodes between pooling over time and the output in bf16")


def _numbered(layers: Layers, kept: Collection[str]) -> tuple[str, ...]:
    """Names in the model of layers, of which additions and pools are numbered there, in the network's order."""
    numbers = {
        layer.name: f"{prefix}{at}" for kind, prefix in (("add", ADD), ("pool", POOL))
        for at, layer in enumerate(one for one in layers if one.kind == kind and not one.tail)
    }  # fmt: skip
    return tuple(numbers.get(name, name) for name in kept)


def _not_quantized(quantized: Any, layers: Layers) -> set[str]:
    """Convolutions of the backbone whose weights NNCF leaves as they are: those of squeeze and excitation, by a pattern
    of its own (`IgnoredPatternNames.SE_BLOCK`)."""
    import openvino as ov

    left = {layer.name for layer in layers if layer.kind == "convolution" and not layer.tail}
    for node in quantized.get_ordered_ops():
        if node.get_friendly_name() in left:
            weights = node.input_value(1).get_node()
            while weights.get_type_name() != "Constant":
                weights = weights.input_value(0).get_node()
            if weights.get_element_type() in (ov.Type.i8, ov.Type.u8):
                left.remove(node.get_friendly_name())
    return left


def _simulate(quantized: Any, fused: set[str]) -> Simulated:
    """The quantized graph in float: each FakeQuantize written out in plain arithmetic, by the formula of its operator's
    specification, so that the plugin has nothing left to run in INT8. Its own switch for that (LP_TRANSFORMS_MODE) gave
    predictions that neither this nor the deployed model gives.

    fused: what the plugin computes within a node that ends in a residual add. Of what is quantized in there it cuts off
    the range and leaves out the rounding: with that left out here too, kernels add a tenth of what quantization costs;
    rounded, half.
    """
    from openvino import opset13 as ops

    model, watched = quantized.clone(), []
    for node in [n for n in model.get_ordered_ops() if n.get_type_name() == "FakeQuantize"]:
        values, low, high, out_low, out_high = node.input_values()
        steps = ops.constant(np.float32(node.get_attributes()["levels"] - 1))
        cut = ops.maximum(ops.minimum(values, high), low)
        codes = ops.divide(ops.multiply(ops.subtract(cut, low), steps), ops.subtract(high, low))
        if node.get_friendly_name() not in fused:
            codes = ops.round(codes)
        again = ops.add(ops.divide(ops.multiply(codes, ops.subtract(out_high, out_low)), steps), out_low)
        if values.get_node().get_type_name() != "Constant":
            # One range for all channels, or of a depthwise convolution's input one for each.
            least, most = (value.get_node().get_data() for value in (low, high))
            step = (most - least) / (int(node.get_attributes()["levels"]) - 1)
            watched.append((node.get_friendly_name(), values, least, most, step))
        node.output(0).replace(again.output(0))
    model.add_results([ops.result(values) for _, values, *_ in watched])
    model.validate_nodes_and_infer_types()
    compiled, outside = compile_for_cpu(model, "fp32", 1), Outside()

    def predict(clips: np.ndarray) -> np.ndarray:
        predictions = []
        for clip in one_by_one(clips):
            prediction, *activations = compiled(clip).to_tuple()
            for (name, _, *bounds), values in zip(watched, activations, strict=True):
                outside.see(name, values, *bounds)
            predictions.append(prediction)
        return np.concatenate(predictions)

    return Simulated(predict, outside)


def load(folder: Path, built: Built, threads: int, device: str) -> Predict:
    """Run the model with `threads` threads."""
    method = "bf16" if BF16 in built.needs else "fp32"
    return _runner(compile_for_cpu(str(folder / built.model_file), method, threads))


def _runner(compiled: Any) -> Predict:
    request = compiled.create_infer_request()

    def predict(clips: np.ndarray) -> np.ndarray:
        return np.array(request.infer({0: clips}, share_inputs=True)[0])

    return predict


def _executed(compiled: Any) -> Iterator[tuple[Any, list[str], dict[str, str]]]:
    """Nodes that a compiled model runs, in order, with the original names of what is fused in each, and facts of it."""
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = {name: str(getattr(info, "value", info)) for name, info in node.get_rt_info().items()}
        yield node, facts["originalLayersNames"].split(","), facts


def executed_in(compiled: Any, precisions: set[str], names: Collection[str]) -> tuple[set[str], int]:
    """(layers of `names`, number of residual adds) that run in one of `precisions`, fused nodes by their original
    names."""
    layers: set[str] = set()
    adds = 0
    for _, original, facts in _executed(compiled):
        if facts["runtimePrecision"].lower() not in precisions:
            continue
        if (kind := facts["layerType"]) in ("Convolution", "FullyConnected"):
            layers |= set(original).intersection(names)
        if kind in ("Convolution", "Eltwise", "Add"):
            adds += sum(name.startswith(ADD) for name in original)
    return layers, adds


def run_by(compiled: Any) -> dict[str, dict[str, int]]:
    """Notes: "run_by", how many convolutions and products each kind of kernel runs here; "fallbacks", how many of all
    operators run by the plugin's reference, which is slow, by their kind."""
    kernels, references = Counter[str](), Counter[str]()
    for _, _, facts in _executed(compiled):
        kernel, kind = facts["primitiveType"], facts["layerType"]
        if kind in ("Convolution", "FullyConnected"):
            kernels[kernel] += 1
        if kernel.startswith("ref"):
            references[kind] += 1
    return {"run_by": dict(kernels), "fallbacks": dict(references)}


def quantized_after(compiled: Any, prefix: str) -> list[str] | None:
    """Nodes that run in INT8, or quantize, and depend on one whose original name begins with `prefix`; None if there is
    no such node."""
    reached: set[str] = set()
    found = []
    for node, names, facts in _executed(compiled):
        sources = {value.get_node().get_friendly_name() for value in node.input_values()}
        if reached & sources or any(name.startswith(prefix) for name in names):
            reached.add(node.get_friendly_name())
            if facts["layerType"] == "FakeQuantize" or facts["runtimePrecision"].lower() in ("u8", "i8"):
                found.append(node.get_friendly_name())
    return found if reached else None


def fused_before_adds(compiled: Any) -> set[str]:
    """Original names of what is computed inside one node of INT8 output with a residual add that comes after it."""
    fused: set[str] = set()
    for _, names, facts in _executed(compiled):
        adds = [at for at, name in enumerate(names) if name.startswith(ADD)]
        if adds and facts["outputPrecisions"].lower() in ("u8", "i8"):
            fused.update(names[: adds[0]])
    return fused


def constant_bytes(xml: Path) -> int:
    """Bytes of a saved model's constants, which its .bin file holds."""
    return xml.with_suffix(".bin").stat().st_size
