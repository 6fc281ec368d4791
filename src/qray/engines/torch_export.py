"""FP32, bf16 and dynamic (Linear-only) artifacts as exported programs, run eagerly."""

from __future__ import annotations

import copy
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

if TYPE_CHECKING:
    # An artifact loads without the code that trained it.
    from qray.model.regressor import VideoRegressor

MODEL_FILE = "model.pt2"


class _Bf16Backbone(nn.Module):
    """The backbone in bf16; normalisation, pooling over time and head stay FP32."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.inner = backbone.to(torch.bfloat16)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.inner(frames.to(torch.bfloat16)).float()


def to_bf16(model: VideoRegressor) -> VideoRegressor:
    """A copy whose backbone holds and computes bf16."""
    model = copy.deepcopy(model)
    model.backbone = _Bf16Backbone(model.backbone)
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
    model: nn.Module = to_bf16(request.model) if method == "bf16" else request.model
    if method == "dynamic":
        from torchao.utils import unwrap_tensor_subclass

        model = unwrap_tensor_subclass(quantize_linear_dynamic(request.model))
    program = export(model, request.example())
    layers = read_layers(program)
    int8 = sum(layer.macs for layer in layers if any("_int_mm" in node for node in layer.nodes))
    torch.export.save(program, folder / MODEL_FILE)
    # torchao's operators must be registered before a program that calls them is read.
    notes = {"imports": "torchao"} if method == "dynamic" else {}
    macs = total_macs(layers)
    return Built(MODEL_FILE, tensor_bytes(program), int8 / macs, macs, (), notes)


def runner(module: Any, threads: int, device: str = "cpu") -> Predict:
    """Wrap a torch callable that is on a device: uint8 numpy in, float32 numpy out."""
    torch.set_num_threads(threads)

    def predict(clips: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(np.ascontiguousarray(clips)).to(device)).cpu().numpy()

    return predict


def load(folder: Path, built: Built, threads: int, device: str) -> Predict:
    """Run the exported program eagerly.

    Raises:
        QrayError: torch finds no such device, dynamic INT8 is to run elsewhere than on the CPU, or the file holds more
            than numbers and a graph of known operators.
    """
    if built.notes.get("imports") == "torchao":
        if device != "cpu":
            raise QrayError(f"{folder}: dynamic INT8 of engine eager runs on cpu, not on {device}")
        import torchao.quantization  # noqa: F401
    if device == "cuda" and not torch.cuda.is_available():
        raise QrayError(f"{folder}: torch finds no GPU to run it on; load it with device='cpu'")
    program = read_program((folder / built.model_file).read_bytes(), str(folder / built.model_file))
    if device != "cpu":
        # By default a GPU rounds what convolutions multiply to TF32, and an FP32 variant is what its name says.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        program = move_to_device_pass(program, device)
    return runner(program.module(), threads, device)
