"""ExecuTorch with XNNPACK, what PyTorch has for phones and boards: FP32, and static INT8 by XNNPACK's quantizer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qray.engines.artifact import BuildRequest, Built, Predict
from qray.engines.layers import LAYER, LAYERS, Layers, export, operator_of, read_layers, resolve_keep_fp32, total_macs
from qray.engines.parity import one_by_one
from qray.errors import QrayError
from qray.reasons import reason_of
from qray.scratch import scratch_folder

MODEL_FILE = "model.pte"
#: In XNNPACK's own words: of 8 bits, a tensor with one scale and one with a scale for each channel.
INT8 = {"xnn_datatype_qint8", "xnn_datatype_qcint8"}
WEIGHTED = {"XNNConv2d", "XNNDepthwiseConv2d", "XNNFullyConnected"}
aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed


def build(request: BuildRequest, folder: Path) -> Built:
    """Write `model.pte`, a program for one clip.

    Raises:
        QrayError: XNNPACK has no kernel for a convolution, or runs one of an INT8 variant, or a residual add, in FP32.
    """
    path = folder / MODEL_FILE
    if request.variant.method != "ptq":
        program = export(request.model, request.example())
        _lower(program.module(), request, path)
        graphs, macs = list(_graphs(path)), total_macs(read_layers(program))
        return Built(MODEL_FILE, _constant_bytes(graphs), 0.0, macs, (), _run_by(path, graphs))
    from qray.engines.proof import prove
    from qray.engines.pt2e import quantize_static, quantized_in_tail, simulate

    with torch.no_grad():
        module = quantize_static(request, _quantizer)
    _lower(module, request, path)
    graphs = list(_graphs(path))
    built = prove(
        request, MODEL_FILE, _constant_bytes(graphs), module.meta[LAYERS], _int8_layers(graphs, _by_weights(module)),
        quantized_in_tail(module), simulate(module, 1), _runner(path, 1), onednn=False, saturates=False,
    )  # fmt: skip
    # Its kernels add products in 32 bits on every CPU, so that weights have all their range.
    return replace(built, notes=built.notes | {"reduce_range": False} | _run_by(path, graphs))


def _quantizer(request: BuildRequest, layers: Layers) -> Any:
    """XNNPACK's: int8 activations with one range each, symmetric weights with one for each channel; of the backbone
    alone, and of that not what is to be kept."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import QuantizationConfig
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec

    from qray.engines.pt2e import observers_of
    from qray.engines.tail import in_backbone

    kept = resolve_keep_fp32(layers, request.variant.keep_fp32)
    activation, weight = observers_of(request.variant)
    inputs = QuantizationSpec(
        dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=activation,
    )  # fmt: skip
    weights = QuantizationSpec(
        dtype=torch.int8, quant_min=-127, quant_max=127, qscheme=torch.per_channel_symmetric, ch_axis=0,
        observer_or_fake_quant_ctr=weight,
    )  # fmt: skip

    class InBackbone(XNNPACKQuantizer):
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            # Not what parameters come by, or their layers would be left too.
            for node in (one for one in model.graph.nodes if one.op == "call_function"):
                if not in_backbone(node) or node.meta.get(LAYER) in kept:
                    node.meta["quantization_annotation"] = QuantizationAnnotation(_annotated=True)
            return super().annotate(model)

    return InBackbone().set_global(QuantizationConfig(inputs, inputs, weights, None))


def _lower(module: Any, request: BuildRequest, path: Path) -> None:
    if any(operator_of(node) is aten.conv3d for node in module.graph.nodes):
        raise QrayError("XNNPACK has no kernel for convolutions over time")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # A batch of another size would need memory that the program does not plan.
        program = torch.export.export(module, (request.example()[:1],), strict=False)
        try:
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            path.write_bytes(lowered.to_executorch().buffer)
        except RuntimeError as error:
            raise QrayError(f"ExecuTorch has no form of this network ({reason_of(str(error))})") from None
    names = [operator.name for operator in _program(path).execution_plan[0].operators]
    if "aten::convolution" in names:
        raise QrayError("XNNPACK has no kernel for some convolution, which ExecuTorch would run by its slow reference")


def load(folder: Path, built: Built, threads: int, device: str) -> Predict:
    """Run the program on each clip of a batch in turn, with `threads` threads.

    Raises:
        QrayError: it is no such program; from predictions, it cannot be run.
    """
    return _runner(folder / built.model_file, threads)


def _runner(path: Path, threads: int) -> Predict:
    with _quiet():
        from executorch.extension.pybindings import portable_lib

        try:
            module = portable_lib._load_for_executorch(str(path))
            module.method_meta("forward")
        except RuntimeError as error:
            raise QrayError(f"{path}: ExecuTorch cannot read this program ({error})") from None
        portable_lib._unsafe_reset_threadpool(threads)

    def one(clip: np.ndarray) -> np.ndarray:
        try:
            return np.array(module.forward((torch.from_numpy(np.ascontiguousarray(clip)),))[0])
        except RuntimeError as error:
            raise QrayError(f"{path}: ExecuTorch cannot run this program on such a clip ({error})") from None

    def predict(clips: np.ndarray) -> np.ndarray:
        # The threads are those of the process, whichever artifact was loaded last.
        if portable_lib._threadpool_get_thread_count() != threads:
            with _quiet():
                portable_lib._unsafe_reset_threadpool(threads)
        return np.concatenate([one(clip) for clip in one_by_one(clips)])

    return predict


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what its libraries write of the CPU, past Python, when first they look at it."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _program(path: Path) -> Any:
    from executorch.exir._serialize._program import deserialize_pte_binary

    return deserialize_pte_binary(path.read_bytes()).program


def _graphs(path: Path) -> Iterator[dict[str, Any]]:
    """What XNNPACK is given of a program, as its schema has it."""
    import executorch.backends.xnnpack.serialization as schemas
    import executorch.data.bin as tools
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader

    program = _program(path)
    schema, flatc = Path(schemas.__path__[0]) / "schema.fbs", Path(tools.__path__[0]) / "flatc"
    for delegate in program.execution_plan[0].delegates:
        data = program.backend_delegate_data[delegate.processed.index].data
        header = XNNHeader.from_bytes(data[: XNNHeader.EXPECTED_LENGTH])
        with scratch_folder("xnnpack") as scratch:
            binary = scratch / "graph.bin"
            binary.write_bytes(data[header.flatbuffer_offset :][: header.flatbuffer_size])
            options = ["--json", "--strict-json", "--defaults-json", "--raw-binary", "-o", str(scratch)]
            subprocess.run([flatc, *options, schema, "--", binary], check=True, capture_output=True)
            text = binary.with_suffix(".json").read_text(encoding="utf-8")
        # Bounds that there are not are written as no JSON is.
        yield json.loads(re.sub(r"(?<=: )-?(inf|nan)\b", "null", text))


def _run_by(path: Path, graphs: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Notes: "run_by", how many operators XNNPACK runs and how many ExecuTorch's own portable kernels, which are slow;
    "fallbacks", how many those are by their kind."""
    plan = _program(path).execution_plan[0]
    calls = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
    # Another kind of instruction hands a part over to XNNPACK.
    portable = Counter(plan.operators[call.op_index].name for call in calls if hasattr(call, "op_index"))
    delegated = sum(len(graph["xnodes"]) for graph in graphs)
    return {"run_by": {"XNNPACK": delegated, "portable": sum(portable.values())}, "fallbacks": dict(portable)}


def _constant_bytes(graphs: Iterable[dict[str, Any]]) -> int:
    """Of weights, scales and biases, each once."""
    constants = [constant for graph in graphs for constant in graph["constant_data"]]
    return sum({constant["named_key"]: constant["size"] for constant in constants if constant["size"]}.values())


def _by_weights(module: torch.fx.GraphModule) -> dict[str, str]:
    """Layers of a converted network by the SHA-256 of their codes, in the orders in which XNNPACK has them: channels of
    the input last, and of a depthwise convolution those of the output."""
    found = {}
    for node in module.graph.nodes:
        if LAYER in node.meta and operator_of(node) in (aten.conv1d, aten.conv2d, aten.linear):
            held: Any = node.args[1]
            if operator_of(held) is decomposed.dequantize_per_channel:
                codes = module.get_buffer(held.args[0].target)
                for order in ((0, 2, 3, 1), (1, 2, 3, 0)) if codes.dim() == 4 else ((0, 1),):
                    data = codes.permute(order).contiguous().numpy().tobytes()
                    found[hashlib.sha256(data).hexdigest()] = node.meta[LAYER]
    return found


def _int8_layers(graphs: Iterable[dict[str, Any]], layers: dict[str, str]) -> tuple[set[str], int]:
    """Layers that a program runs in INT8, by their weights (as `_by_weights` has them), and additions."""
    found, adds = set(), 0
    for graph in graphs:
        values = [value["xvalue_union"] for value in graph["xvalues"]]
        tensors = {tensor["id_out"]: tensor for tensor in (value.get("tensor_value", value) for value in values)}
        for node in graph["xnodes"]:
            kind, of = node["xnode_union_type"], node["xnode_union"]
            operands = [
                tensors[of[name]] for name in ("input1_id", "input2_id", "filter_id", "output_id") if name in of
            ]
            if {tensor["datatype"] for tensor in operands} <= INT8:
                adds += kind == "XNNAdd"
                if kind in WEIGHTED:
                    key = graph["constant_data"][tensors[of["filter_id"]]["constant_buffer_idx"]]["named_key"]
                    found.add(layers.get(key, key))
    return found, adds
