"""What this machine can do, each fact found by trying it: packages, CPU, GPU, compiler, video codecs, engines, Ray."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from qray.engines.catalog import ENGINES
from qray.errors import QrayError
from qray.measure.host import cpu_flags, cpu_model, has_int8_dot_product, has_native_bf16, usable_cpus, versions
from qray.point import CPU
from qray.ray_token import dashboard_words
from qray.reasons import reason_of
from qray.scratch import scratch_folder
from qray.study import Variant

State = Literal["ok", "partly", "missing", "broken"]
Seen = tuple[State, str]
STYLE: dict[str, str] = {"ok": "green", "partly": "yellow", "missing": "yellow", "broken": "red"}
#: (encoder, pixel format, container) that are written and read back, to prove that clips can be decoded.
CODECS = (("mjpeg", "yuvj420p", "avi"), ("libx264", "yuv420p", "mp4"), ("libx265", "yuv420p", "mp4"),
          ("libvpx-vp9", "yuv420p", "webm"), ("libsvtav1", "yuv420p", "mkv"))  # fmt: skip
#: A task that does nothing is back in under a second; the whole diagnosis is to take less than a minute.
RAY_TASK_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at: "partly" costs some variants, "missing" all that need it, "broken" the whole run."""

    topic: str
    state: State
    detail: str


def _try(topic: str, check: Callable[[], Seen]) -> Finding:
    try:
        return Finding(topic, *check())
    except Exception as error:
        # Whatever breaks, the other checks are still worth reading.
        reason = reason_of(str(error))
        return Finding(topic, "broken", reason if isinstance(error, QrayError) else f"{type(error).__name__}: {reason}")


def _packages() -> Seen:
    found = versions()
    torch, vision = found.get("torch"), found.get("torchvision")
    if torch is None or vision is None:
        return "broken", "torch and torchvision are both needed: pip install qray"
    import torchvision  # noqa: F401  (fails when it was compiled against another torch)

    return "ok", ", ".join(f"{name} {version}" for name, version in found.items())


def _cpu() -> Seen:
    flags = " ".join(sorted(cpu_flags())) or "no flags known"
    usable, there = usable_cpus(), os.cpu_count() or 1
    cores = f"{usable} usable core{'s' * (usable > 1)}" + (f" of {there}" if usable < there else "")
    return "ok", f"{cpu_model()}, {cores}, {platform.machine()} ({flags})"


def _int8() -> Seen:
    if has_int8_dot_product():
        return "ok", "dot product in hardware"
    return "missing", "no VNNI, AMX or dot product: INT8 runs, with little or no gain"


def _bf16() -> Seen:
    if has_native_bf16():
        return "ok", "in hardware"
    return "missing", "none in this CPU: bf16 on OpenVINO is skipped"


def _gpu() -> Seen:
    import torch

    if not torch.cuda.is_available():
        return "missing", "no CUDA device: training runs on the CPU, and variants on cuda are skipped"
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return "ok", "; ".join(f"{p.name}, {p.total_memory / 2**30:.0f} GiB" for p in names)


def _memory() -> Seen:
    import psutil

    free = shutil.disk_usage(Path.cwd()).free / 2**30
    shared = Path("/dev/shm")
    store = f", /dev/shm {shutil.disk_usage(shared).free / 2**30:.1f} GiB" if shared.is_dir() else ""
    total = psutil.virtual_memory()
    text = f"{total.available / 2**30:.1f} of {total.total / 2**30:.1f} GiB memory free, {free:.0f} GiB disk{store}"
    return "ok" if total.available > 3 * 2**30 else "missing", text


def _round_trip(encoder: str, pixel_format: str, container: str, folder: Path) -> None:
    import av
    import numpy as np

    from qray.data.probe import probe

    path = folder / f"{encoder}.{container}"
    with av.open(str(path), "w") as output:
        stream = output.add_stream(encoder, rate=30)
        # The encoders' own reports would go to stderr past every log setting of FFmpeg.
        stream.options = {"x265-params": "log-level=none"} if encoder == "libx265" else {}
        stream.width = stream.height = 128
        stream.pix_fmt = pixel_format
        for level in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((128, 128, 3), level * 20, np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    facts = probe(path)
    if facts.error or facts.n_frames != 8:
        raise RuntimeError(facts.error or f"{facts.n_frames} of 8 frames came back")


@contextlib.contextmanager
def _priority_kept() -> Iterator[None]:
    """SVT-AV1, run as root, leaves its caller at real-time priority. A Ray that is started then inherits it, and on one
    core its processes starve those that they wait for."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def _video() -> Seen:
    import logging

    import av

    os.environ.setdefault("SVT_LOG", "0")
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    good, bad = [], []
    with scratch_folder("doctor") as folder:
        for encoder, pixel_format, container in CODECS:
            name = encoder.removeprefix("lib")
            try:
                with _priority_kept():
                    _round_trip(encoder, pixel_format, container, folder)
                good.append(name)
            except (av.error.FFmpegError, ValueError, RuntimeError) as error:
                bad.append(f"{name} ({str(error).splitlines()[0][:60]})")
    state: State = "ok" if not bad else "missing" if "mjpeg" in good else "broken"
    return state, f"PyAV {av.__version__}: {', '.join(good)}" + f"; not {', '.join(bad)}" * bool(bad)


def _variants(engine: str) -> Seen:
    from qray.engines.registry import missing_requirement

    good: list[str] = []
    reasons: dict[str, list[str]] = {}
    offered = [(device, method) for device in ENGINES[engine].devices for method in ENGINES[engine].on(device)]
    for device, method in offered:
        variant = {"name": "doctor", "method": method, "engine": engine, "device": device}
        name = method if device == CPU else f"{method} on {device}"
        if reason := missing_requirement(Variant.model_validate(variant)):
            reasons.setdefault(reason, []).append(name)
        else:
            good.append(name)
    lacking = "; ".join(f"not {', '.join(methods)}: {reason}" for reason, methods in reasons.items())
    detail = "; ".join(part for part in (", ".join(good), lacking) if part)
    return "ok" if not reasons else "partly" if good else "missing", detail


def _ray() -> Seen:
    import ray

    from qray.graph.session import cluster_slots, ray_session

    with ray_session() as dashboard:

        @ray.remote(num_cpus=0.5)
        def one() -> int:
            return 1

        if ray.get(one.remote(), timeout=RAY_TASK_TIMEOUT_S) != 1:
            return "broken", "a task returned the wrong answer"
        slots = cluster_slots()
        address = os.environ.get("RAY_ADDRESS")
        where = f"attached to {address}" if address else f"starts here, in {ray.get_runtime_context().get_temp_dir()}"
        store = ray.cluster_resources().get("object_store_memory", 0) / 2**30
        text = f"{where}: {slots.cpus:g} CPUs, {slots.gpus:g} GPUs, object store {store:.1f} GiB"
        return "ok", f"{text}; {dashboard_words(dashboard)}"


def diagnose() -> list[Finding]:
    """Look at everything, in the order in which it is shown. Takes some ten seconds, most of them to start Ray."""
    checks: dict[str, Callable[[], Seen]] = {
        "packages": _packages, "CPU": _cpu, "INT8 arithmetic": _int8, "bf16 arithmetic": _bf16, "GPU": _gpu,
        "memory": _memory, "video": _video, **{f"engine {engine}": partial(_variants, engine) for engine in ENGINES},
        "Ray": _ray,
    }  # fmt: skip
    return [_try(topic, check) for topic, check in checks.items()]


def print_findings(findings: list[Finding], console: Console) -> None:
    """One line a finding."""
    grid = Table.grid(Column(no_wrap=True), Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
    for finding in findings:
        grid.add_row(Text(finding.topic), Text(finding.state, style=STYLE[finding.state]), Text(finding.detail))
    console.print(grid)
