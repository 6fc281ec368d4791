"""Artifacts in floats, and dynamic (Linear-only) ones, as exported programs, run eagerly on a CPU or a GPU."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qray.engines.artifact import BuildRequest, Built, Predict
from qray.engines.layers import export, read_layers, total_macs
from qray.engines.programs import read_program
from qray.engines.torch_program import on_device
from qray.errors import QrayError
from qray.point import CUDA

if TYPE_CHECKING:
    # An artifact loads without the code that trained it.
    from qray.model.regressor import VideoRegressor

MODEL_FILE = "model.pt2"
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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


def load(folder: Path, built: Built, threads: int, device: str, compiled: bool = False) -> Predict:
    """Run the exported program: eagerly, unless it is to be `compiled`.

    Raises:
        QrayError: torch finds no such device, or the file holds more than numbers and a graph of known operators.
    """
    if built.notes.get("imports") == "torchao":
        import torchao.quantization  # noqa: F401
    if device == CUDA and not torch.cuda.is_available():
        raise QrayError(f"{folder}: torch finds no GPU to run it on")
    program = read_program((folder / built.model_file).read_bytes(), str(folder / built.model_file))
    notes = {name: bool(built.notes.get(name)) for name in ("tf32", "cuda_graph")}
    return on_device(program, threads, device, compiled=compiled, **notes)
