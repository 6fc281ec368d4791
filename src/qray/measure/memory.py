"""Peak memory of one artifact: load it and predict once, in a process of its own."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from qray.measure.latency import pin_to_given_cores, run_subprocess
from qray.point import Point
from qray.scratch import scratch_folder

CALLS = 3


def _peak_rss_mb() -> float:
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss, which on Linux starts from the peak of the process that started this one.
        peak_kib = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(peak_kib.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, others in KiB.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def measure_memory(folder: Path, point: Point, timeout_s: float) -> float:
    """Peak resident set in MiB of the whole process: interpreter, engine and model.

    Raises:
        QrayError: the process failed or took longer than `timeout_s`.
    """
    with scratch_folder("memory") as scratch:
        answer = scratch / "answer.json"
        arguments = ["qray.measure.memory", str(folder), json.dumps(asdict(point)), str(answer)]
        run_subprocess(arguments, point.threads, timeout_s, f"memory of {folder.name}")
        return float(json.loads(answer.read_text(encoding="utf-8"))["peak_rss_mb"])


def _main(folder: Path, point: Point) -> float:
    from qray.engines.registry import load_artifact

    record = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))["clip"]
    predict = load_artifact(folder, point.threads, point.device, allow_code=True)
    shape = (point.batch, record["frames"], record["image_size"], record["image_size"], 3)
    clips = np.zeros(shape, np.uint8)
    for _ in range(CALLS):
        predict(clips)
    return _peak_rss_mb()


if __name__ == "__main__":
    pin_to_given_cores()
    peak = _main(Path(sys.argv[1]), Point(**json.loads(sys.argv[2])))
    Path(sys.argv[3]).write_text(json.dumps({"peak_rss_mb": peak}), encoding="utf-8")
