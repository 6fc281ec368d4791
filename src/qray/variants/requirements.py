"""What a machine must have to build a variant, told without importing the engine or torch: a driver asks it too."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

from qray.measure.host import has_native_bf16
from qray.study import Variant

COMPILERS = ("g++", "clang++", "c++")
#: The packages of an engine that are not qray's own dependencies, and the extra that brings them.
PACKAGES = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}


def lacking_here(variant: Variant) -> str | None:
    """Why this machine cannot build a variant, its instruction set apart, in a sentence; or None."""
    engine, method = variant.engine, variant.method
    if engine == "inductor" and not any(shutil.which(name) for name in COMPILERS):
        return f"no C++ compiler ({', '.join(COMPILERS)}) on PATH; install one, for example Debian's package g++"
    # NNCF quantizes; the other methods do without.
    needed = [name for name in PACKAGES.get(engine, ()) if name != "nncf" or method == "ptq"]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed: pip install 'qray[{EXTRAS[engine]}]'"
    if (engine, method) == ("openvino", "bf16") and not has_native_bf16():
        return "this CPU has no bf16 arithmetic (avx512_bf16 or amx_bf16), so OpenVINO would run FP32 instead"
    return None
