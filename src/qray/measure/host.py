"""The host as results describe it. Light to import."""

from __future__ import annotations

import os
import platform
import socket
from importlib import metadata
from pathlib import Path

#: Instruction sets that decide how fast an INT8 or bf16 model runs.
INFERENCE_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx_vnni_int8",
    "amx_tile", "amx_int8", "amx_bf16",
    "neon", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
PACKAGES = (
    "torch",
    "torchvision",
    "torchao",
    "ray",
    "av",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
)


def cpu_flags() -> frozenset[str]:
    """Flags of this CPU that matter to inference, by their /proc/cpuinfo names; empty where the system has none."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return frozenset()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return frozenset(value.split()) & frozenset(INFERENCE_FLAGS)
    return frozenset()


def has_int8_dot_product() -> bool:
    """Whether this CPU multiplies and adds INT8 in one instruction (VNNI, AMX, or Arm's dot product)."""
    return bool(cpu_flags() & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def has_native_bf16() -> bool:
    """Whether this CPU computes in bf16 rather than converting to FP32 first."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def cpu_model() -> str:
    """The CPU's name."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def host_name() -> str:
    """Name, CPU and core count: what two latencies must share to be compared."""
    return f"{socket.gethostname()} ({cpu_model()}, {os.cpu_count()} cores)"


def load_average() -> float:
    """Mean number of running processes over the last minute; NaN where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return float("nan")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
