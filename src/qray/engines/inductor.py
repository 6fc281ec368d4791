"""AOTInductor packages: compiled ahead of time, loaded without a compiler. FP32, bf16, and INT8 from pt2e on a CPU;
floats on a GPU, which none has seen."""

from __future__ import annotations

import platform
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from qray.atomic import atomic_path
from qray.engines.artifact import BuildRequest, Built, Predict
from qray.engines.layers import LAYERS, export, read_layers, total_macs
from qray.engines.packed import narrow, pack, unpack
from qray.engines.proof import prove
from qray.engines.torch_export import tensor_bytes, to_half
from qray.engines.torch_program import captured, runner, with_tf32
from qray.errors import QrayError, Unavailable
from qray.measure.host import cpu_flags
from qray.measure.isa import ISA_FLAGS
from qray.point import CUDA
from qray.scratch import scratch_folder, without_blanks
from qray.study import INT8_METHODS

MODEL_FILE = "model.pt2"
#: Ending of the library in a package whose 4-bit codes are packed: no other program takes it for one that it can load.
PACKED = ".packed"
#: Note of such an artifact.
PACKED_NOTE = (
    "4-bit codes lie in the file two a byte; loading writes them out, one a byte, into a temporary folder that is gone "
    "when it has loaded, and they are computed with as INT8"
)


def build(request: BuildRequest, folder: Path) -> Built:
    """Write `model.pt2`, an AOTInductor package.

    Raises:
        QrayError: an INT8 variant whose compiled code runs convolutions or residual adds in FP32.
    """
    method = request.variant.method
    module: nn.Module = to_half(request.model, method)
    if method in INT8_METHODS:
        from qray.engines.conv3d import int8_adds, teach_inductor
        from qray.engines.pt2e import quantized, quantized_in_tail, simulate

        module = quantized(request)
        teach_inductor()
    program = export(module, request.example())
    if request.variant.device == CUDA:
        return _build_for_gpu(request, program, folder)
    layers = module.meta[LAYERS] if isinstance(module, torch.fx.GraphModule) else read_layers(program)
    needs = compiled_needs(request.isa)
    packed = method in INT8_METHODS and request.variant.weight_bits == 4
    code = _compile(program, folder / MODEL_FILE, request.isa, packed)
    if not isinstance(module, torch.fx.GraphModule):
        return Built(MODEL_FILE, tensor_bytes(program), 0.0, total_macs(layers), needs)
    found, fused_adds = int8_layers(code, {layer.name for layer in layers})
    executed = found, fused_adds + int8_adds(module)
    notes = {"packed": PACKED_NOTE} if packed else {}
    deployed = load(folder, Built(MODEL_FILE, 0, 0.0, 0, notes=notes), 1, "cpu")
    built = prove(
        request, MODEL_FILE, tensor_bytes(program) - packed * _saved_bytes(program), layers, executed,
        quantized_in_tail(module), simulate(module, 1), deployed, onednn=True, needs=needs,
    )  # fmt: skip
    return replace(built, notes=built.notes | notes)


def _build_for_gpu(request: BuildRequest, program: torch.export.ExportedProgram, folder: Path) -> Built:
    """On the GPU, for it: Triton's kernels are chosen by timing them there."""
    if not torch.cuda.is_available():
        raise Unavailable("AOTInductor compiles for a GPU on the GPU that it runs on, and torch finds none here")
    layers = read_layers(program)
    # Inductor lays out the weights of convolutions as it likes them.
    _compile(move_to_device_pass(program, CUDA), folder / MODEL_FILE, request.isa, packed=False)
    notes = {"tf32": request.variant.method == "tf32", "cuda_graph": request.variant.cuda_graph}
    return Built(MODEL_FILE, tensor_bytes(program), 0.0, total_macs(layers), compiled_needs(request.isa), notes)


def _saved_bytes(program: torch.export.ExportedProgram) -> int:
    """Half of the bytes of codes of at most 4 bits, which is what packing them saves."""
    tensors = [*program.state_dict.values(), *program.constants.values()]
    codes = [t.numpy() for t in tensors if isinstance(t, torch.Tensor) and t.dtype == torch.int8]
    return sum(array.size // 2 for array in codes if narrow(array).all())


#: What g++ may use, and how wide inductor's vectors are, where neither is to be taken from the CPU that compiles.
MARCH = {"any": "x86-64-v3", "avx2": "x86-64-v3", "avx-vnni": "x86-64-v3"} | dict.fromkeys(
    ("avx512", "avx512-vnni", "amx"), "x86-64-v4"
)
SIMD_BITS = {"x86-64-v3": 256, "x86-64-v4": 512}


def compiled_needs(isa: str) -> tuple[str, ...]:
    """CPU flags without which code compiled for an instruction set dies."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return tuple(sorted(cpu_flags()))
    return ISA_FLAGS["avx2" if isa == "any" else isa]


def _compiler_settings(isa: str) -> dict[str, object]:
    march = MARCH.get(isa) if platform.machine().lower() in ("x86_64", "amd64") else None
    if march is None:
        return {}
    # That this CPU has these instructions is known; Inductor would compile, link and load a program for each set.
    return {"cpp.march": march, "cpp.simdlen": SIMD_BITS[march], "cpp.vec_isa_ok": True}


def _compile(program: torch.export.ExportedProgram, path: Path, isa: str, packed: bool) -> str:
    """Compile into a package at `path`; return the C++ that was compiled, which the package as shipped leaves out."""
    from torch._inductor import aoti_compile_and_package

    # Inductor hands paths to the compiler unquoted.
    with (
        without_blanks("TORCHINDUCTOR_CACHE_DIR") as moved,
        scratch_folder("aoti") as scratch,
        torch.no_grad(),
    ):
        package = scratch / "model.pt2"
        # Freezing is what packs weights and turns quantize/dequantize pairs into INT8 kernels; without no_grad it is
        # silently left out.
        # Constants of up to 8 elements would be inlined namelessly, and a narrow layer could not be told from its
        # neighbours in the compiled code.
        configs = {"freezing": True, "always_keep_tensor_constants": True, **_compiler_settings(isa)}
        # Tables of source lines, for profilers, are a third of what would be shipped.
        configs["aot_inductor.enable_line_tables"] = False
        if moved:
            # The folder of precompiled headers was fixed when Inductor was imported.
            configs["aot_inductor.precompile_headers"] = False
        aoti_compile_and_package(program, package_path=str(package), inductor_configs=configs)
        return _ship(package, path, packed)


def _ship(package: Path, path: Path, packed: bool) -> str:
    """Copy a package without its C++ sources, which nothing reads at run time, and its library, which holds the
    weights, with 4-bit codes packed or as it is."""
    code = ""
    with (
        zipfile.ZipFile(package) as source,
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as shipped,
    ):
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith(".wrapper.cpp"):
                code += data.decode()
            elif packed and entry.filename.endswith(".so"):
                shipped.writestr(entry.filename + PACKED, pack(data))
            elif not entry.filename.endswith(".cpp"):
                shipped.writestr(entry, data)
    if not code:
        raise QrayError("the AOTInductor package holds no wrapper source, so what it executes cannot be read")
    return code


def int8_layers(code: str, names: set[str]) -> tuple[set[str], int]:
    """Layers that compiled code runs as INT8 kernels, and how many of those add an INT8 residual.

    Read from the kernel calls of the generated C++: each names the layer's constants, and the binary form takes the
    residual as its uint8 accumulator.
    """
    mangled = {re.sub(r"\W", "_", name): name for name in names}
    found: set[str] = set()
    adds = 0
    for call in re.finditer(r"aoti_torch_cpu__(qconv\w*|qlinear\w*)\((.*)", code):
        words = set(re.findall(r"\w+", call.group(2).split("temporary_reference", 1)[-1][:200]))
        for word in words:
            layer = mangled.get(re.sub(r"_(weight_bias|weight|bias)$", "", word))
            if layer:
                found.add(layer)
                adds += "binary" in call.group(1)
                break
    return found, adds


def load(folder: Path, built: Built, threads: int, device: str) -> Predict:
    """Run a package. Neither torchao nor a compiler is needed."""
    path = folder / built.model_file
    if device == CUDA:
        return _on_gpu(path, built.notes, threads)
    if "packed" not in built.notes:
        package = _loaded(path)
    else:
        # Gone before the first prediction: what is loaded stays mapped.
        with scratch_folder("unpacked") as unpacked:
            _unpack(path, unpacked)
            package = _loaded(unpacked)
    return runner(lambda clips: package.boxed_run([clips])[0], threads)


def _on_gpu(path: Path, notes: Mapping[str, Any], threads: int) -> Predict:
    if not torch.cuda.is_available():
        raise QrayError(f"{path}: torch finds no GPU to run it on")
    graph = bool(notes.get("cuda_graph"))
    package = _loaded(path, graph, 0)
    call = with_tf32(lambda clips: package.boxed_run([clips])[0], bool(notes.get("tf32")))
    return runner(captured(call, CUDA) if graph else call, threads, CUDA)


def _unpack(package: Path, folder: Path) -> None:
    with zipfile.ZipFile(package) as source:
        for name in source.namelist():
            path = Path(source.extract(name, folder))
            if name.endswith(PACKED):
                path.with_suffix("").write_bytes(unpack(path.read_bytes()))
                path.unlink()


def _loaded(package: Path, one_thread: bool = False, gpu: int = -1) -> Any:
    """A package as a file, or as the folder that it was unpacked into. one_thread: it waits for nothing that other
    threads do, as a CUDA graph must not. gpu: its number; -1 for a CPU."""
    # `torch._inductor.aoti_load_package` ends in the same, but imports the compiler first: 2.4 CPU-seconds and 150 MiB.
    return torch._C._aoti.AOTIModelPackageLoader(str(package), "model", one_thread, 1, gpu)
