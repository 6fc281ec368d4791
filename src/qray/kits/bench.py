"""Measure the artifacts of this kit on this machine, and write measured.json:

    python bench.py --name raspberry-pi-5

Takes Python 3.8 or newer, numpy, and the engines of the artifacts (requirements.txt); an engine that is not there costs
its variants alone. Nothing leaves this machine but what you carry back: `qray run table OUT --measured measured.json`.

Every file is checked against kit.json first. Then each variant predicts the kit's clips, which must come out as where
it was built; those that do are timed as qray does it: interleaved in blocks, in one process, pinned to as many cores as
threads; and each by itself: how long a fresh process takes to its first prediction, the memory that it takes, and
(--minutes) whether it gets slower when it goes on for minutes.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# OpenVINO would report its import to Intel, by Google Analytics, from a process that it forks for it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

HERE = Path(__file__).resolve().parent
FORMAT = 1
#: How often a fresh process is started, and calls of each before its memory is read.
COLD_STARTS, CALLS = 3, 3
#: Seconds that any measuring process may take beside what it is asked to measure for.
TIMEOUT_S = 600.0
#: Medians of a sustained run are of so many seconds each.
WINDOW_S = 10.0
#: Why something was not measured that there was no time for.
OVER = "the time that --limit gave was over"
NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"


class Refused(Exception):
    """What ends the program, in a sentence."""


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(2**20), b""):
            digest.update(piece)
    return digest.hexdigest()


def read_kit(folder: Path) -> dict[str, Any]:
    """kit.json of a folder in which every file is as it was written, with its own SHA-256 as "id"."""
    path = folder / "kit.json"
    if not path.is_file():
        raise Refused(f"{path} is missing: this is no kit, or not all of one")
    try:
        kit = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise Refused(f"{path} is not as it was written ({error}): copy the kit again") from None
    if kit.get("format") != FORMAT:
        raise Refused(f"{path}: format {kit.get('format')}, this bench.py reads format {FORMAT}; make the kit again")
    for name, digest in sorted(kit["files"].items()):
        if not (folder / name).is_file():
            raise Refused(f"{folder / name} is missing: the kit was not copied whole")
        if sha256(folder / name) != digest:
            raise Refused(f"{folder / name} is not as it was written: copy the kit again")
    return {**kit, "id": sha256(path)}


def load(variant: dict[str, Any], threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A variant's model on so many threads: uint8 (B, T, H, W, 3) -> float32 (B,)."""
    path = HERE / variant["folder"] / variant["model_file"]
    if variant["engine"] == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        # As `qray.engines.onnxruntime` has it, and for its reasons.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.x64quantprecision", str(int(variant.get("u8u8", False))))
        without = ["WeightBiasQuantization"]
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=without
        )
        (given,), (asked,) = session.get_inputs(), session.get_outputs()
        return lambda clips: session.run([asked.name], {given.name: clips})[0]
    if variant["engine"] == "openvino":
        import openvino

        # OpenVINO's default precision is whatever the CPU likes best; a variant is what its name says.
        properties = {
            "INFERENCE_PRECISION_HINT": "bf16" if variant["method"] == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }  # fmt: skip
        compiled = openvino.Core().compile_model(str(path), "CPU", properties)
        request = compiled.create_infer_request()
        return lambda clips: np.array(request.infer({0: clips}, share_inputs=True)[0])
    if variant["engine"] == "executorch":
        import torch
        from executorch.extension.pybindings import portable_lib

        program = portable_lib._load_for_executorch(str(path))
        portable_lib._unsafe_reset_threadpool(threads)
        # It was planned for one clip.
        return lambda clips: np.concatenate(
            [program.forward((torch.from_numpy(c),))[0].numpy() for c in clips[:, None]]
        )
    if variant["engine"] == "qnnpack":
        import torch

        # What is packed, and run, is chosen by it.
        torch.backends.quantized.engine = "qnnpack"
        torch.set_num_threads(threads)
        script = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
        return lambda clips: script(torch.from_numpy(clips)).numpy()
    if variant["needs"] == "torch":
        import torch

        if variant["device"] == "cuda" and not torch.cuda.is_available():
            raise Refused("torch finds no NVIDIA GPU here")
        # The kit's own, not those of a qray that may be installed; int8_conv registers what some programs call.
        sys.path.insert(0, str(HERE))
        from qray.engines import int8_conv, torch_program  # noqa: F401

        options = {"tf32": variant["tf32"], "cuda_graph": variant["cuda_graph"]}
        return torch_program.on_device(torch.export.load(str(path)), threads, variant["device"],
                                       compiled=variant["engine"] == "compile", **options)  # fmt: skip
    raise Refused(f"engine {variant['engine']} is none of those that a kit runs")


def interleave(calls: dict[str, Callable[[], object]], measure: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Milliseconds of each call by block: rounds whose order is shuffled, as `qray.measure.latency.interleave`."""
    rng = np.random.default_rng(0)
    for call in calls.values():
        for _ in range(measure["warmup_calls"]):
            call()
    per_block = -(-measure["min_calls"] // measure["blocks"])
    samples: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(measure["blocks"]):
        for name in rng.permutation(sorted(calls)):
            call, spent = calls[str(name)], 0.0
            block: list[float] = []
            # The caches still hold another variant's weights: one call to bring one's own back.
            call()
            while len(block) < per_block or spent < measure["seconds"] / measure["blocks"]:
                started = time.perf_counter()
                call()
                elapsed = time.perf_counter() - started
                block.append(1e3 * elapsed)
                spent += elapsed
            samples[str(name)].append(block)
    return samples


def peak_rss_mb() -> float:
    """Peak resident set of this process, MiB."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10
    if os.name == "nt":
        import ctypes
        from ctypes import wintypes

        class Counters(ctypes.Structure):
            _fields_ = [("cb", wintypes.DWORD), ("faults", wintypes.DWORD)] + [
                (name, ctypes.c_size_t) for name in ("peak", "now", "a", "b", "c", "d", "e", "f")
            ]

        found = Counters()
        process = ctypes.windll.kernel32.GetCurrentProcess()  # type: ignore[attr-defined]
        ctypes.windll.psapi.GetProcessMemoryInfo(process, ctypes.byref(found), ctypes.sizeof(found))  # type: ignore[attr-defined]
        return float(found.peak) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def clips_of(batch: int) -> np.ndarray:
    """So many of the kit's clips, again from the first where it has fewer."""
    clips = np.load(HERE / "clips.npy", mmap_mode="r", allow_pickle=False)
    return np.ascontiguousarray(clips[np.arange(batch) % len(clips)])


def work(request: dict[str, Any]) -> dict[str, Any]:
    """What a measuring process does; every variant that fails is a reason."""
    what, threads = request["what"], request["threads"]
    # What runs on a GPU has all cores beside it, as in a run of qray.
    on_cpu = all(variant["device"] == "cpu" for variant in request["variants"])
    if on_cpu and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    variants = {variant["name"]: variant for variant in request["variants"]}
    if what == "predict":
        (variant,) = variants.values()
        predict, clips = load(variant, threads), np.load(HERE / "clips.npy", allow_pickle=False)
        return {"predictions": [float(predict(clip[None])[0]) for clip in clips]}
    if what == "cold":
        (variant,) = variants.values()
        predict, clips = load(variant, threads), clips_of(request["batch"])
        predict(clips)
        seconds = time.time() - request["spawned"]
        for _ in range(CALLS - 1):
            predict(clips)
        return {"cold_start_s": seconds, "peak_rss_mb": peak_rss_mb()}
    if what == "sustain":
        (variant,) = variants.values()
        predict, clips = load(variant, threads), clips_of(request["batch"])
        until = time.time() + 60 * request["minutes"]
        windows: list[float] = []
        while time.time() < until:
            window: list[float] = []
            while not window or sum(window) < 1e3 * WINDOW_S:
                started = time.perf_counter()
                predict(clips)
                window.append(1e3 * (time.perf_counter() - started))
            windows.append(float(np.median(window)))
        return {"windows_ms": windows}
    calls: dict[str, Callable[[], object]] = {}
    predicts: dict[str, Any] = {}
    errors: dict[str, str] = {}
    clips = clips_of(request["batch"])
    for name, variant in variants.items():
        try:
            predict = load(variant, threads)
            predict(clips)
            calls[name], predicts[name] = functools.partial(predict, clips), predict
        except Exception as error:  # whatever an engine raises, the others are still measured
            errors[name] = f"{type(error).__name__}: {error}"
    found = {"blocks_ms": interleave(calls, request["measure"]) if calls else {}, "errors": errors}
    if calls and not on_cpu:
        from qray.measure.gpu import gpu_figures

        settings = {name: request["measure"][name] for name in ("blocks", "min_calls", "seconds")}
        found.update(gpu_figures(predicts, clips, **settings))
    return found


def ask(what: str, threads: int, until: float, timeout_s: float = TIMEOUT_S, **request: Any) -> dict[str, Any]:
    """What a process of its own answers, or {"error": why it did not}. until: when all is to be over (`time.time`)."""
    if (left := until - time.time()) < 1:
        return {"error": OVER}
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    with tempfile.TemporaryDirectory() as folder:
        answer, question = Path(folder) / "answer.json", Path(folder) / "question.json"
        question.write_text(json.dumps({"what": what, "threads": threads, "spawned": time.time(), **request}))
        command = [sys.executable, str(Path(__file__).resolve()), "--work", str(question), str(answer)]
        environment = {**os.environ, **{name: str(threads) for name in names}}
        # No pipe: what the process has started, and left, would hold its end open.
        errors = Path(folder) / "stderr"
        try:
            with errors.open("wb") as stderr:
                done = subprocess.run(command, env=environment, stderr=stderr, stdout=subprocess.DEVNULL,
                                      timeout=min(timeout_s, left), check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": OVER if left < timeout_s else f"it took longer than {timeout_s:.0f} s"}
        if done.returncode:
            told = errors.read_text(encoding="utf-8", errors="replace")
            said = [line for line in told.splitlines() if line.strip()]
            killed = f"its process was ended by signal {-done.returncode}" if done.returncode < 0 else ""
            return {"error": killed or (said[-1].strip()[:500] if said else f"exit code {done.returncode}")}
        return dict(json.loads(answer.read_text()))


def check(variant: dict[str, Any], until: float) -> dict[str, Any]:
    """Whether a variant's engine is here, and predicts what it predicted where it was built."""
    package = variant["needs"]
    try:
        module = __import__(package)
    except Exception as error:
        why = f"{package} cannot be imported ({type(error).__name__}: {error}); pip install {package}"
        return {"status": "skipped", "reason": why}
    if variant["device"] == "cuda" and not module.cuda.is_available():
        return {"status": "skipped", "reason": "torch finds no NVIDIA GPU here"}
    found = ask("predict", 1, until, variants=[variant])
    if "error" in found:
        return {"status": "skipped" if found["error"] == OVER else "failed", "reason": found["error"]}
    own = np.asarray(found["predictions"], float)
    if not np.isfinite(own).all():
        return {"status": "failed", "reason": f"{int((~np.isfinite(own)).sum())} predictions are not finite"}
    rms = float(np.sqrt(np.square(own - np.asarray(variant["expected"])).mean()))
    result = {"status": "ok", "reason": None, "predictions": own.tolist(), "rms": rms}
    if rms > variant["allowed_rms"]:
        why = f"its predictions are {rms:.3g} (RMS) from those of where it was built; at most "
        result.update(status="failed", reason=f"{why}{variant['allowed_rms']:.3g} is allowed")
    return result


def by_itself(variant: dict[str, Any], point: dict[str, int], minutes: float, until: float) -> dict[str, Any]:
    """Cold start, memory, and sustained speed of a variant, at the first point that was measured."""
    at: dict[str, Any] = {"variants": [variant], "batch": point["batch"]}
    starts = [ask("cold", point["threads"], until, **at) for _ in range(COLD_STARTS)]
    told = [start for start in starts if "error" not in start]
    found: dict[str, Any] = {}
    if told:
        found["cold_start_s"] = float(np.median([start["cold_start_s"] for start in told]))
        found["peak_rss_mb"] = max(start["peak_rss_mb"] for start in told)
    if minutes > 0:
        sustained = ask("sustain", point["threads"], until, TIMEOUT_S + 120 * minutes, minutes=minutes, **at)
        found["sustained_ms"] = sustained.get("windows_ms", [])
    return found


def cpuinfo(*names: str) -> str:
    """The first value of /proc/cpuinfo by one of these names; empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip().lower() in names), "")


def gpu() -> str:
    """The GPU that torch would take; empty where there is none, or no torch."""
    try:
        import torch

        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""
    except ImportError:
        return ""


def machine(device: str = "cpu") -> dict[str, Any]:
    """What this machine is. device: of the kit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    model = Path("/proc/device-tree/model")
    return {
        "system": platform.system(), "machine": platform.machine(), "cores": cores,
        "cpu": cpuinfo("model name") or platform.processor() or platform.machine(),
        "board": model.read_text(errors="replace").strip("\0 \n") if model.is_file() else "",
        "flags": sorted(set(cpuinfo("flags", "features").split())), "python": platform.python_version(),
        "numpy": np.__version__, "gpu": gpu() if device == "cuda" else "",
    }  # fmt: skip


def versions(engines: list[str]) -> dict[str, str]:
    """Versions of the engines that are here."""
    found = {}
    for name in engines:
        try:
            found[name] = str(getattr(__import__(name), "__version__", "unknown"))
        except Exception:
            # Said in each of its variants.
            continue
    return found


def main() -> None:
    """The whole of it."""
    parser = argparse.ArgumentParser(description="Measure the artifacts of this kit on this machine.")
    parser.add_argument("--name", default=re.sub(r"[^A-Za-z0-9._+-]", "-", platform.node()) or "device",
                        help="what rows of this machine are called; default: its host name")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=0.0, help="of sustained work for each variant; default: none")
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="MINUTES",
                        help="after which nothing more is measured; default: none")  # fmt: skip
    parser.add_argument("--to", type=Path, default=Path("measured.json"), help="the file to write")
    parser.add_argument("--work", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        question, answer = given.work
        answer.write_text(json.dumps(work(json.loads(question.read_text()))))
        return
    if not re.fullmatch(NAME, given.name) or given.name in ("cpu", "cuda"):
        raise Refused(f"--name {given.name}: letters, digits and . _ + - only, and neither cpu nor cuda")
    kit, started = read_kit(HERE), time.time()
    until = started + 60 * given.limit
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    print(f"{len(kit['variants'])} variants of study {kit['study']}, {len(kit['clips'])} clips", flush=True)
    results = {}
    for variant in kit["variants"]:
        results[variant["name"]] = found = check(variant, until)
        said = f"RMS to where it was built {found['rms']:.3g}" if "rms" in found else ""
        print(f"  {variant['name']}: {found['status']} {found['reason'] or said}", flush=True)
    right = [variant for variant in kit["variants"] if results[variant["name"]]["status"] == "ok"]
    latency: list[dict[str, Any]] = []
    about = {
        "format": FORMAT, "kit": kit["id"], "device": given.name, "machine": machine(kit["device"]),
        "engines": versions(sorted({variant["needs"] for variant in kit["variants"]})), "load_average": load_average,
        "started": started,
    }  # fmt: skip

    def write() -> None:
        """What is there so far: whatever ends this program later, that can be carried back."""
        record = {**about, "seconds": time.time() - started, "variants": results, "latency": latency}
        unfinished = given.to.with_name(f".{given.to.name}")
        unfinished.write_text(json.dumps(record, indent=1), encoding="utf-8")
        unfinished.replace(given.to)

    write()
    for point in kit["points"] if right else []:
        measure, threads = kit["measure"], point["threads"]
        there = [variant for variant in right if threads == 1 or not variant["one_thread"]]
        if threads > machine()["cores"]:
            print(
                f"  {threads} threads: this machine has {machine()['cores']} cores, so this point is left out",
                flush=True,
            )
            continue
        print(f"latency of {len(there)} variants, {threads} threads, batch {point['batch']}", flush=True)
        limit = TIMEOUT_S + 20 * measure["seconds"] * len(there)
        answer = ask("latency", threads, until, limit, variants=there, batch=point["batch"], measure=measure)
        of_each = ("blocks_ms", "errors", "compute_ms", "throughput_clips_s")
        latency.append({**point, "error": answer.get("error"), **{name: answer.get(name, {}) for name in of_each}})
        for name, blocks in sorted(answer.get("blocks_ms", {}).items()):
            print(f"  {name}: {np.median(np.concatenate(blocks)):.2f} ms", flush=True)
        write()
    for variant in right:
        print(f"cold start and memory of {variant['name']}", flush=True)
        results[variant["name"]].update(by_itself(variant, (latency or kit["points"])[0], given.minutes, until))
        write()
    write()
    print(f"{given.to.resolve()}: carry it back, and `qray run table OUT --measured {given.to.name}`")
    if not right:
        raise Refused("no variant of the kit ran here; measured.json says why")


if __name__ == "__main__":
    try:
        main()
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(1)
