"""INT8 on an NVIDIA GPU by an operator of qray's own, `qray::int8_conv2d`, quantized with the scales of the x86
variants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

# Registers the operator that programs call.
import qray.engines.int8_conv  # noqa: F401
from qray.engines import torch_export
from qray.engines.artifact import BuildRequest, Built, Predict
from qray.engines.layers import LAYERS, export
from qray.engines.proof import prove
from qray.errors import QrayError
from qray.point import CUDA

MODEL_FILE = torch_export.MODEL_FILE
#: Of tensor cores that multiply INT8 from Triton: Ampere. That of Turing does not compile (Triton 3.8).
LEAST_CAPABILITY = (8, 0)


def build(request: BuildRequest, folder: Path) -> Built:
    """Write `model.pt2`, an exported program. On the CPU, and the deployed model is compared there, by the operator's
    reference.

    Raises:
        QrayError: convolutions or residual adds would run in FP32.
    """
    from qray.engines.int8_lowering import int8_layers, lower
    from qray.engines.pt2e import quantized, quantized_in_tail, simulate

    module = quantized(request)
    assert isinstance(module, torch.fx.GraphModule)
    program = export(lower(module), request.example())
    torch.export.save(program, folder / MODEL_FILE)
    deployed = load(folder, Built(MODEL_FILE, 0, 0.0, 0), 1, "cpu")
    built = prove(
        request, MODEL_FILE, torch_export.tensor_bytes(program), module.meta[LAYERS], int8_layers(program),
        quantized_in_tail(module), simulate(module, 1), deployed, onednn=False, saturates=False,
    )  # fmt: skip
    return replace(built, notes=built.notes | {"cuda_graph": request.variant.cuda_graph})


def load(folder: Path, built: Built, threads: int, device: str) -> Predict:
    """Run the program. The first call of each size compiles its kernels, which Triton keeps for the next process.

    Raises:
        QrayError: this GPU multiplies no INT8 that Triton reaches.
    """
    if device == CUDA and torch.cuda.is_available():
        found = torch.cuda.get_device_capability()
        if found < LEAST_CAPABILITY:
            wanted, has = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, found))
            raise QrayError(
                f"{folder}: engine triton needs a GPU of compute capability {wanted}, and this one has {has}"
            )
    return torch_export.load(folder, built, threads, device)
