"""The engines: what each offers, and what a machine must have for it. Told without importing one, or torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from qray.measure.host import has_native_bf16
from qray.point import CPU, CUDA

COMPILERS = ("g++", "clang++", "c++")
#: What a CUDA toolkit has, of those that AOTInductor includes, and pip's packages have not.
CUDA_HEADER = "include/crt/host_defines.h"


@dataclass(frozen=True)
class Engine:
    """One entry of the catalog; its module builds, loads and proves."""

    #: Has `MODEL_FILE`, the name of the file that `load` opens, `build(request, folder) -> Built`, which raises where
    #: the engine does not execute what the method says, and `load(folder, built, threads, device) -> Predict`, device
    #: being one of `devices`.
    module: str
    #: What it offers on the CPU, and what each method needs of packages that are not qray's own. A method that is not
    #: here is a bad study, not a skipped row.
    methods: dict[str, tuple[str, ...]]
    #: The same on a GPU.
    gpu_methods: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: What a machine must have to run what a kit holds of it there, by device: a package. On no other device is it
    #: carried.
    carried: dict[str, str] = field(default_factory=dict)
    #: Whether it can capture the kernels of a call as a CUDA graph, and replay them.
    graphs: bool = False
    #: The extra that brings those packages.
    extra: str | None = None
    #: Why this machine cannot do a method on a device, packages aside.
    lacks: Callable[[str, str], str | None] = field(default=lambda method, device: None)
    #: Methods whose builds leave torch changed, so that their processes build for this engine alone.
    changes_process: tuple[str, ...] = ()
    #: Whether all that it builds is compiled for an instruction set, not its INT8 alone.
    compiles: bool = False
    #: Whether that is native code, which loading runs.
    native: bool = False
    #: Whether what runs on a GPU is compiled there, for that GPU and no other.
    built_there: bool = False
    #: Widths of INT8 weights.
    weight_bits: tuple[int, ...] = (8,)
    #: Settings of a variant that are algorithms of its own quantizer.
    remedies: tuple[str, ...] = ()
    #: Whether it can keep additions and pools in FP32, not layers with weights alone.
    keeps_unweighted: bool = False

    def on(self, device: str) -> dict[str, tuple[str, ...]]:
        """What it offers on a device ("cpu" or "cuda"), as `methods`."""
        return {CPU: self.methods, CUDA: self.gpu_methods}[device]

    @property
    def devices(self) -> tuple[str, ...]:
        """Where what it built can run, in torch's words."""
        return tuple(device for device in (CPU, CUDA) if self.on(device))


def _no_compiler(method: str, device: str) -> str | None:
    if any(shutil.which(name) for name in COMPILERS):
        return None
    return f"no C++ compiler ({', '.join(COMPILERS)}) on PATH; install one, for example Debian's package g++"


def _no_toolkit(method: str, device: str) -> str | None:
    if device == CUDA and not any((Path(root) / CUDA_HEADER).is_file() for root in _toolkits()):
        return (f"no CUDA toolkit ({CUDA_HEADER}) under CUDA_HOME or /usr/local/cuda: what AOTInductor compiles for a "
                "GPU includes its headers, and those of pip's packages are not all of them")  # fmt: skip
    return _no_compiler(method, device)


def _toolkits() -> list[str]:
    nvcc = shutil.which("nvcc")
    given = os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), nvcc and str(Path(nvcc).parents[1])
    return [root for root in (*given, "/usr/local/cuda") if root]


def _no_bf16(method: str, device: str) -> str | None:
    if method != "bf16" or has_native_bf16():
        return None
    return "this CPU has no bf16 arithmetic (avx512_bf16 or amx_bf16), so OpenVINO would run FP32 instead"


def _no_onnxruntime_gpu(method: str, device: str) -> str | None:
    # Both packages bear the same module.
    try:
        metadata.version("onnxruntime-gpu")
    except metadata.PackageNotFoundError:
        return "the onnxruntime that is installed is that for CPUs; pip install onnxruntime-gpu in its place"
    return None


_ONNX = ("onnx", "onnxscript", "onnxruntime")
#: In the order in which they are listed to people.
ENGINES = {
    "eager": Engine(
        "qray.engines.torch_export", dict.fromkeys(("fp32", "finetune", "bf16", "dynamic"), ()),
        gpu_methods=dict.fromkeys(("fp32", "finetune", "tf32", "fp16", "bf16"), ()), graphs=True,
        # On a CPU there are engines for what is shipped; on a GPU it is PyTorch's own kernels that are compared.
        carried={CUDA: "torch"},
    ),
    "inductor": Engine(
        "qray.engines.inductor", dict.fromkeys(("fp32", "finetune", "bf16", "ptq", "qat"), ()), lacks=_no_toolkit,
        gpu_methods=dict.fromkeys(("fp32", "finetune", "tf32", "fp16", "bf16"), ("triton",)), graphs=True,
        built_there=True,
        # Compiling leaves Inductor with other settings than it had.
        changes_process=("fp32", "finetune", "tf32", "fp16", "bf16", "ptq", "qat"), compiles=True, native=True,
        weight_bits=(8, 4),
        remedies=("rounding",),
    ),
    "onnxruntime": Engine(
        "qray.engines.onnxruntime", {"fp32": _ONNX, "ptq": _ONNX}, extra="onnx", carried={CPU: "onnxruntime"},
        remedies=("u8u8",),
    ),
    "openvino": Engine(
        "qray.engines.openvino", {"fp32": ("openvino",), "bf16": ("openvino",), "ptq": ("openvino", "nncf")},
        extra="openvino", lacks=_no_bf16, carried={CPU: "openvino"},
        # NNCF, which quantizes, may replace functions of torch.
        changes_process=("ptq",), remedies=("bias_correction",), keeps_unweighted=True,
    ),
    "executorch": Engine(
        "qray.engines.executorch", dict.fromkeys(("fp32", "ptq"), ("executorch",)), extra="executorch",
        # Its compiler registers operators and passes of its own.
        changes_process=("fp32", "ptq"), carried={CPU: "executorch"},
    ),
    "qnnpack": Engine(
        # A TorchScript program may call whatever operators there are.
        "qray.engines.qnnpack", {"ptq": ()}, native=True, carried={CPU: "torch"},
    ),
    "compile": Engine(
        "qray.engines.torch_compile", {},
        gpu_methods=dict.fromkeys(("fp32", "finetune", "tf32", "fp16", "bf16"), ("triton",)), graphs=True,
        lacks=_no_compiler, carried={CUDA: "torch"},
    ),
    "triton": Engine(
        "qray.engines.triton", {}, gpu_methods=dict.fromkeys(("ptq", "qat"), ("triton",)), graphs=True,
        # Triton compiles, beside its kernels, what launches them.
        lacks=_no_compiler, remedies=("rounding",), carried={CUDA: "torch"},
    ),
    "tensorrt": Engine(
        "qray.engines.tensorrt", {},
        # An ONNX graph of the version that is written here has no convolution in bf16.
        gpu_methods=dict.fromkeys(("fp32", "finetune", "tf32", "fp16", "ptq"), ("tensorrt", *_ONNX)),
        graphs=True, extra="tensorrt", native=True, built_there=True,
    ),
    "onnxruntime-cuda": Engine(
        "qray.engines.onnxruntime_gpu", {}, gpu_methods=dict.fromkeys(("fp32", "finetune", "tf32", "fp16"), _ONNX),
        extra="onnx", lacks=_no_onnxruntime_gpu,
    ),
    "onnxruntime-tensorrt": Engine(
        # It computes convolutions of FP32 in TF32, and has no setting against that.
        "qray.engines.onnxruntime_gpu", {}, gpu_methods=dict.fromkeys(("tf32", "fp16"), (*_ONNX, "tensorrt")),
        extra="tensorrt", lacks=_no_onnxruntime_gpu,
    ),
}  # fmt: skip


def engines_of(method: str, device: str = CPU) -> tuple[str, ...]:
    """Engines that offer a method on a device."""
    return tuple(name for name, engine in ENGINES.items() if method in engine.on(device))
