"""TensorRT by its Python API: plans, compiled on the GPU that they run on, in floats and in INT8 with explicit
quantization. Written for TensorRT 10 and 11; no GPU has seen it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qray.engines.artifact import BuildRequest, Built, Predict
from qray.engines.torch_program import captured, runner
from qray.errors import QrayError, Unavailable
from qray.point import CUDA
from qray.scratch import scratch_folder

MODEL_FILE = "model.plan"
#: Clips of a call that a plan is made for: from one, best at the second number, up to the third; more go in turns.
BATCHES = (1, 8, 64)
#: Of an Inspector's words for what a tensor holds: "Row major Int8 format", "Thirty-two wide channel vectorized row
#: major Int8 format".
INT8 = re.compile(r"\bint8\b", re.IGNORECASE)


def _logger() -> Any:
    """TensorRT's errors, which it says nowhere else, in its `said`."""
    import tensorrt as trt

    class Said(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.said.append(msg)

    return Said()


def build(request: BuildRequest, folder: Path) -> Built:
    """Write `model.plan`, and read in it what runs in INT8.

    Raises:
        QrayError: TensorRT refuses the network, or runs in FP32 what should be INT8. Unavailable: there is no GPU.
    """
    from qray.engines.layers import resolve_keep_fp32, total_macs
    from qray.engines.onnx_export import export_onnx
    from qray.engines.onnx_quantize import quantize
    from qray.engines.onnxruntime import initializer_bytes, simulate
    from qray.engines.proof import prove
    from qray.engines.torch_export import to_half

    if not torch.cuda.is_available():
        raise Unavailable("a TensorRT plan is compiled on the GPU that it runs on, and torch finds none here")
    method = request.variant.method
    with scratch_folder("tensorrt") as scratch:
        source, target = scratch / "model.onnx", scratch / "quantized.onnx"
        layers = export_onnx(replace(request, model=to_half(request.model, method)), source)
        if method == "ptq":
            quantize(request, source, target, resolve_keep_fp32(layers, request.variant.keep_fp32), tensorrt=True)
        else:
            target = source
        shape = request.example().shape[1:]
        (folder / MODEL_FILE).write_bytes(compile_plan(for_parser(target), shape, tf32=method == "tf32"))
        notes = {"cuda_graph": request.variant.cuda_graph}
        if method != "ptq":
            return Built(MODEL_FILE, initializer_bytes(target), 0.0, total_macs(layers), (), notes)
        graph = read_graph(target)
        executed = executed_int8(_inspected((folder / MODEL_FILE).read_bytes()), graph)
        deployed = load(folder, Built(MODEL_FILE, 0, 0.0, 0), 1, CUDA)
        built = prove(
            request, MODEL_FILE, coded_bytes(target), layers, executed, graph.quantized_in_tail, simulate(target),
            deployed, onednn=False, saturates=False,
        )  # fmt: skip
        return replace(built, notes=built.notes | notes)


def for_parser(path: Path) -> bytes:
    """An ONNX model whose clips are cast before anything else is done with them: TensorRT reads uint8, and computes
    nothing in it."""
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    first = graph.input[0].name
    bytewise, cast = {first}, f"{first}_cast"
    for node in graph.node:
        if node.op_type in ("Reshape", "Transpose") and node.input[0] in bytewise:
            bytewise.update(node.output)
        if node.op_type == "Cast" and node.input[0] in bytewise:
            _read_instead(graph, node.output[0], node.input[0])
            _read_instead(graph, first, cast)
            graph.node.remove(node)
            node.input[0], node.output[0] = first, cast
            graph.node.insert(0, node)
            break
    # The types of what comes before the cast have changed.
    kept = [value for value in graph.value_info if value.name not in bytewise]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return bytes(model.SerializeToString())


def _read_instead(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = new if name == old else name


def compile_plan(model: bytes, clip: Sequence[int], tf32: bool) -> bytes:
    """The plan of an ONNX model for this GPU. clip: (T, H, W, 3). Types are those that the model names, so that no
    layer is computed in fewer bits than it says; TensorRT would otherwise round FP32 to TF32.

    Raises:
        QrayError: with what TensorRT says.
    """
    import tensorrt as trt

    logger = _logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        said = "; ".join(str(parser.get_error(at).desc()) for at in range(parser.num_errors))
        raise QrayError(f"TensorRT cannot read the network: {said or '; '.join(logger.said)}")
    config = builder.create_builder_config()
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    # Without it the inspector names layers, and not what they compute in.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, *((batch, *clip) for batch in BATCHES))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise QrayError(f"TensorRT compiles no plan: {'; '.join(logger.said) or 'it does not say why'}")
    return bytes(plan)


def _engine(plan: bytes, where: str) -> Any:
    import tensorrt as trt

    logger = _logger()
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise QrayError(
            f"{where}: TensorRT {trt.__version__} does not take this plan ({'; '.join(logger.said)}); plans are of one "
            "version and one kind of GPU: build it here"
        )
    return engine


def load(folder: Path, built: Built, threads: int, device: str) -> Predict:
    """Run a plan.

    Raises:
        QrayError: there is no GPU, or the plan is of another kind of GPU or another TensorRT.
    """
    path = folder / built.model_file
    if not torch.cuda.is_available():
        raise QrayError(f"{path}: torch finds no GPU to run it on")
    # PyTorch's own context must be there before TensorRT allocates in it.
    torch.cuda.init()  # type: ignore[no-untyped-call]
    engine = _engine(path.read_bytes(), str(path))
    context = engine.create_execution_context()
    given, asked = (engine.get_tensor_name(at) for at in range(2))

    def call(clips: torch.Tensor) -> torch.Tensor:
        result = torch.empty(len(clips), dtype=torch.float32, device=device)
        context.set_input_shape(given, tuple(clips.shape))
        context.set_tensor_address(given, clips.data_ptr())
        context.set_tensor_address(asked, result.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise QrayError(f"{path}: TensorRT could not run it")
        return result

    def in_turns(clips: torch.Tensor) -> torch.Tensor:
        return torch.cat([call(part) for part in torch.split(clips, BATCHES[-1])])

    return runner(captured(in_turns, device) if built.notes.get("cuda_graph") else in_turns, threads, device)


def _inspected(plan: bytes) -> list[dict[str, Any]]:
    import tensorrt as trt

    inspector = _engine(plan, "what was just compiled").create_engine_inspector()
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]
    return [layer for layer in layers if isinstance(layer, dict)]


@dataclass(frozen=True)
class Graph:
    """What a quantized ONNX graph is made of."""

    #: The layer of each convolution, by the name of its node.
    convolutions: Mapping[str, str]
    #: Names of the residual adds of which one operand is quantized.
    adds: Collection[str]
    #: As `proof.prove` takes it.
    quantized_in_tail: Sequence[str] | None


def read_graph(path: Path) -> Graph:
    """Of a file that `onnx_quantize.quantize` wrote for TensorRT."""
    import onnx

    from qray.engines.onnxruntime import layer_of, quantized_after
    from qray.engines.tail import PREFIX

    graph = onnx.load(str(path)).graph
    made = {name: node for node in graph.node for name in node.output}
    convolutions = {node.name: layer_of(node.input[1]) for node in graph.node if node.op_type == "Conv"}
    back = {name for name, node in made.items() if node.op_type == "DequantizeLinear"}
    adds = [node.name for node in graph.node if node.op_type == "Add" and back.intersection(node.input)]
    return Graph(convolutions, adds, quantized_after(path, PREFIX))


def executed_int8(layers: Sequence[Mapping[str, Any]], graph: Graph) -> tuple[set[str], int]:
    """Layers that a plan runs in INT8, and how many residual adds in the kernel of such a layer, as an inspector tells
    (https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/best-practices.html#engine-inspector): a kernel
    bears the names of all nodes that it stands for, and says what each of its tensors holds."""
    found: set[str] = set()
    adds = 0
    for layer in layers:
        named = f"{layer.get('Name', '')} {layer.get('Metadata', '')}"
        nodes = set(re.split(r"[^\w./-]+", named))
        convolved = [of for node, of in graph.convolutions.items() if node in nodes]
        reads = [str(tensor.get("Format/Datatype", tensor.get("Format", ""))) for tensor in layer.get("Inputs", ())]
        if convolved and reads and INT8.search(reads[0]):
            found.update(convolved)
            adds += len(nodes.intersection(graph.adds))
    return found, adds


def coded_bytes(path: Path) -> int:
    """Bytes of the parameters of a quantized ONNX graph in a plan: a byte for each weight that is quantized there."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    coded = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return sum(array.size if name in coded else array.nbytes for name, array in arrays.items())
