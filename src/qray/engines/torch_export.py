"""Artifacts in floats, and dynamic (Linear-only) ones, as exported programs, run eagerly on a CPU or a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from qray.engines.artifact import BuildRequest, Built, Predict
from qray.engines.layers import export, read_layers, total_macs
from qray.engines.programs import read_program
from qray.errors import QrayError
from qray.point import CPU, CUDA

if TYPE_CHECKING:
    # An artifact loads without the code that trained it.
    from qray.model.regressor import VideoRegressor

MODEL_FILE = "model.pt2"
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: Calls before a capture, in which libraries choose kernels and allocate what a graph must not.
WARM_UP_CALLS = 3


class _HalfBackbone(nn.Module):
    """The backbone in 16 bits; normalisation, pooling over time and head stay FP32."""

    def __init__(self, backbone: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = backbone.to(dtype), dtype

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.inner(frames.to(self.dtype)).float()


def to_half(model: VideoRegressor, method: str) -> VideoRegressor:
    """A copy whose backbone holds and computes the floats of a method of `HALVES`; the same model for any other."""
    if method not in HALVES:
        return model
    model = copy.deepcopy(model)
    model.backbone = _HalfBackbone(model.backbone, HALVES[method])
    return model


def quantize_linear_dynamic(model: VideoRegressor) -> VideoRegressor:
    """A copy whose Linear layers hold INT8 weights and quantize activations as they come; convolutions stay FP32."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = copy.deepcopy(model)
    quantize_(model, Int8DynamicActivationInt8WeightConfig(version=2))
    return model


def tensor_bytes(program: torch.export.ExportedProgram) -> int:
    """Bytes of a program's parameters and buffers, by the storage that a tensor subclass really has."""
    tensors = [*program.state_dict.values(), *program.constants.values()]
    return sum(_stored(t) for t in tensors if isinstance(t, torch.Tensor))


def _stored(tensor: torch.Tensor) -> int:
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
    if names:
        return sum(_stored(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def build(request: BuildRequest, folder: Path) -> Built:
    """Write `model.pt2`."""
    method = request.variant.method
    model: nn.Module = to_half(request.model, method)
    if method == "dynamic":
        from torchao.utils import unwrap_tensor_subclass

        model = unwrap_tensor_subclass(quantize_linear_dynamic(request.model))
    program = export(model, request.example())
    layers = read_layers(program)
    int8 = sum(layer.macs for layer in layers if any("_int_mm" in node for node in layer.nodes))
    torch.export.save(program, folder / MODEL_FILE)
    # torchao's operators must be registered before a program that calls them is read.
    notes: dict[str, Any] = {"imports": "torchao"} if method == "dynamic" else {}
    if request.variant.device == CUDA:
        notes |= {"tf32": method == "tf32", "cuda_graph": request.variant.cuda_graph}
    macs = total_macs(layers)
    return Built(MODEL_FILE, tensor_bytes(program), int8 / macs, macs, (), notes)


def runner(module: Any, threads: int, device: str = "cpu") -> Predict:
    """Wrap a torch callable that is on a device: uint8 numpy in, float32 numpy out."""
    torch.set_num_threads(threads)

    def predict(clips: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(np.ascontiguousarray(clips)).to(device)).cpu().numpy()

    return predict


def load(
    folder: Path, built: Built, threads: int, device: str, prepared: Callable[[Any], Any] = lambda module: module
) -> Predict:
    """Run the exported program, eagerly unless its module is `prepared` otherwise.

    Raises:
        QrayError: torch finds no such device, or the file holds more than numbers and a graph of known operators.
    """
    if built.notes.get("imports") == "torchao":
        import torchao.quantization  # noqa: F401
    if device == CUDA and not torch.cuda.is_available():
        raise QrayError(f"{folder}: torch finds no GPU to run it on")
    program = read_program((folder / built.model_file).read_bytes(), str(folder / built.model_file))
    if device == CPU:
        return runner(prepared(program.module()), threads)
    module = channels_last(move_to_device_pass(program, device).module())
    call = with_tf32(prepared(module), bool(built.notes.get("tf32")))
    return runner(captured(call, device) if built.notes.get("cuda_graph") else call, threads, device)


def channels_last(module: nn.Module) -> nn.Module:
    """Weights of convolutions as tensor cores read them; clips come in that order already (T, H, W, 3)."""
    for parameter in (*module.parameters(), *module.buffers()):
        if parameter.dim() in CHANNELS_LAST:
            parameter.data = parameter.data.contiguous(memory_format=CHANNELS_LAST[parameter.dim()])
    return module


def with_tf32(module: Any, allowed: bool) -> Any:
    """A module whose every call rounds what convolutions and products multiply to TF32 or does not, whatever others in
    this process do. By default PyTorch does in convolutions, and an FP32 variant is what its name says."""

    def call(clips: torch.Tensor) -> torch.Tensor:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
        return module(clips)

    return call


def captured(call: Any, device: str) -> Any:
    """What a call launches on a GPU, captured at the first batch of each size and replayed for the next; the result is
    overwritten by the next call.

    As https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs asks: warmed up on a stream of its own, with
    inputs and outputs that stay where they are.
    """
    graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}

    def replay(clips: torch.Tensor) -> torch.Tensor:
        if len(clips) not in graphs:
            given = clips.to(device, copy=True)
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_CALLS):
                    call(given)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = call(given)
            graphs[len(clips)] = graph, given, result
        graph, given, result = graphs[len(clips)]
        given.copy_(clips)
        graph.replay()
        return result

    return replay
