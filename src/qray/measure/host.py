"""The host as results describe it, and how many of its CPUs this process may use. Light to import."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

#: Instruction sets that decide how fast an INT8 or bf16 model runs.
INFERENCE_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx_vnni_int8",
    "amx_tile", "amx_int8", "amx_bf16",
    "neon", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
#: A driver that has fallen asleep takes seconds to wake.
GPU_TOOL_S = 30.0
PACKAGES = ("torch", "torchvision", "torchao", "ray", "av", "numpy", "onnx", "onnxruntime", "openvino", "nncf")
#: What oneDNN, under PyTorch and OpenVINO, leaves unused when the variable ONEDNN_MAX_CPU_ISA names a lesser set.
ONEDNN_LIMITS = {
    "SSE41": r"avx|fma|f16c|amx",
    "AVX": r"avx|fma|f16c|amx",
    "AVX2": r"avx512|avx_vnni|amx",
    "AVX2_VNNI": r"avx512|avx_vnni_int8|amx",
    "AVX2_VNNI_2": r"avx512|amx",
    "AVX512_CORE": r"avx512_|avx_vnni|amx",
    "AVX512_CORE_VNNI": r"avx512_bf16|amx",
    "AVX512_CORE_BF16": r"amx",
    "AVX512_CORE_FP16": r"amx",
}


def _cpuinfo(*names: str) -> str | None:
    """The first value of /proc/cpuinfo that goes by one of these names; None where the system tells none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ()
    told = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in told if name.strip().lower() in names), None)


def cpu_flags() -> frozenset[str]:
    """Flags of this CPU that matter to inference, by their /proc/cpuinfo names; empty where the system has none.

    ONEDNN_MAX_CPU_ISA restricts them: what the kernels do not use, the CPU might as well not have.
    """
    unused = ONEDNN_LIMITS.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper())
    have = frozenset((_cpuinfo("flags", "features") or "").split()) & frozenset(INFERENCE_FLAGS)
    return frozenset(flag for flag in have if unused is None or not re.match(unused, flag))


def has_int8_dot_product() -> bool:
    """Whether this CPU multiplies and adds INT8 in one instruction (VNNI, AMX, or Arm's dot product)."""
    return bool(cpu_flags() & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def has_native_bf16() -> bool:
    """Whether this CPU computes in bf16 rather than converting to FP32 first."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def cpu_model() -> str:
    """The CPU's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def usable_cores() -> list[int]:
    """The cores that this process may run on, by number."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cpu_quota(control: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs' worth of time that control groups grant this process, or None where they set no limit.

    A container's limit (`docker run --cpus`, a pod's limits.cpu, systemd's CPUQuota) leaves every core visible. Read as
    https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1 say: the tightest of the group and those above it.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas = []
    for controllers, path in (line.split(":", 2)[1:] for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has one tree and no names; of version 1 the systems name this one either way.
        roots = [control / "cpu", control / "cpu,cpuacct"] if controllers else [control, control / "unified"]
        # Inside a container the path may be the host's: what is not there is passed over, the root always stands.
        group = Path(path.lstrip("/"))
        quotas += [quota for root in roots for part in (group, *group.parents) if (quota := _group_quota(root / part))]
    return min(quotas, default=None)


def _group_quota(group: Path) -> float | None:
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        # "max" and -1 are no limit.
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError):
        return None


def usable_cpus() -> int:
    """How many CPUs there are for this process: the cores it may run on, or fewer where a quota grants less time.

    A part of a CPU counts as one: a process may have more threads than that, never none.
    """
    quota = cpu_quota()
    return len(usable_cores()) if quota is None else min(len(usable_cores()), max(1, math.ceil(quota)))


def gpu_name() -> str | None:
    """Name, compute capability and driver of this machine's NVIDIA GPU, the first by name of several; None without one.

    What a latency on a GPU depends on, as the driver's own tool tells it, which takes neither torch nor CUDA.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=GPU_TOOL_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = [[word.strip() for word in line.split(",")] for line in told.splitlines()]
    names = [
        f"{name}, compute capability {cap}, driver {driver}" for name, cap, driver in (f for f in found if len(f) == 3)
    ]
    return min(names, default=None)


def host_name() -> str:
    """Name, CPU and usable cores: what two latencies must share to be compared."""
    return f"{socket.gethostname()} ({cpu_model()}, {usable_cpus()} cores)"


def provenance_here() -> dict[str, Any]:
    """Who makes a figure, for the record of the unit that makes it: host, instruction sets, versions."""
    return {"host": host_name(), "cpu_flags": " ".join(sorted(cpu_flags())), "versions": versions()}


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
