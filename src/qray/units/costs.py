"""The costs of decoding, preprocessing, backbone and head of one clip: their unit, and the process that times them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qray.errors import QrayError
from qray.graph.unit import Resources, Task, Unit
from qray.measure.costs import PARTS
from qray.measure.host import host_name
from qray.measure.latency import pin_to_given_cores, run_subprocess
from qray.model.epoch import Checkpoint
from qray.scratch import scratch_folder
from qray.storage.cache import local_copy
from qray.study import ClipSpec, Imported, Measure, Model, Study
from qray.study_model import NETWORK

if TYPE_CHECKING:
    # The process that times runs this file, and needs no Ray.
    from qray.data.manifest import Manifest
    from qray.units.context import RunContext

#: TEST clips that are decoded in turn, spread over the split.
CLIPS = 16
THREADS = 1
#: Importing and the first calls of each part take some seconds; a slow machine gets many times that.
SECONDS_PER_PART = 60.0


@dataclass(frozen=True)
class CostJob:
    """What is timed: the FP32 model on one window of a clip, as latency is, and the videos, with their frame counts."""

    model: Model | Imported
    clip: ClipSpec
    videos: tuple[tuple[str, int], ...]
    settings: Measure


def costs_unit(study: Study, train: Unit, digests: Mapping[str, str]) -> Unit:
    """The costs of a clip. The weights are part of it: denormal numbers take longer."""
    depends = {"train": train, "clip": study.clip.frames_read(), "test": digests["TEST"],
               "measure": study.measure.of_a_point()}  # fmt: skip
    return Unit("costs", "a clip", Costs(train), depends, title="measure the costs of a clip")


@dataclass
class Costs(Task):
    """On a node that does nothing else."""

    train: Unit
    resources = Resources(exclusive=True)

    def start(self, unit: Unit, run: RunContext) -> Any:
        job = cost_job(run.study, run.manifest)
        return run.backend.submit(unit, measure_costs, job, run.checkpoint(self.train.key))

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any]:
        return value | run.name_failed("the costs of a clip", value["failed_clips"])


def cost_job(study: Study, manifest: Manifest) -> CostJob:
    """The costs that a study asks for."""
    test = manifest.split("TEST")
    chosen = test.iloc[np.unique(np.linspace(0, len(test) - 1, min(CLIPS, len(test))).round().astype(int))]
    videos = tuple(zip(chosen["path"].tolist(), chosen["n_frames"].tolist(), strict=True))
    return CostJob(study.model, study.clip.single_window(), videos, study.measure)


def measure_costs(job: CostJob, checkpoint: Checkpoint) -> dict[str, Any]:
    """Time every part in a process of its own: {"blocks_ms": {part: blocks}, "clips", "frames", ... "load_average"}.

    Raises:
        QrayError: no clip could be decoded, or it took too long.
    """
    with scratch_folder("costs") as folder:
        request, weights, response = (folder / name for name in ("request.json", "weights.pt", "response.json"))
        content = {
            "model": job.model.model_dump(mode="json"), "clip": job.clip.model_dump(mode="json"),
            "videos": job.videos, "measure": job.settings.model_dump(mode="json"),
        }  # fmt: skip
        request.write_text(json.dumps(content), encoding="utf-8")
        weights.write_bytes(checkpoint.data)
        arguments = ["qray.units.costs", str(request), str(weights), str(response)]
        limit_s = len(PARTS) * (SECONDS_PER_PART + 10 * job.settings.seconds)
        run_subprocess(arguments, THREADS, limit_s, "the costs of a clip")
        measured: dict[str, Any] = json.loads(response.read_text(encoding="utf-8"))
    # The measuring process is pinned, and would count only the cores that it was left.
    return measured | {"host": host_name()}


def _decoders(
    spec: ClipSpec, videos: list[tuple[str, int]], kept: ExitStack
) -> tuple[list[Callable[[], np.ndarray]], dict[str, str]]:
    """A call for each video that can be decoded, and the reasons of the others by path. kept: what holds the files on
    this machine, where they lie elsewhere."""
    from qray.data.decode import ClipError, decode_frames, evaluation_indices

    found: list[Callable[[], np.ndarray]] = []
    failed: dict[str, str] = {}
    for path, n_frames in videos:
        indices = evaluation_indices(n_frames, spec)
        try:
            local = kept.enter_context(local_copy(path))

            def call(local: Path = local, indices: np.ndarray = indices) -> np.ndarray:
                return decode_frames(local, indices, spec.image_size)[0]

            call()
        except ClipError as error:
            failed[path] = str(error)
        else:
            found.append(call)
    if not found:
        path, reason = next(iter(failed.items()))
        raise QrayError(f"none of {len(videos)} TEST clips could be decoded; the first: {path}: {reason}")
    return found, failed


def _measure_here(request: dict[str, Any], checkpoint: bytes) -> dict[str, Any]:
    """Body of the subprocess."""
    import torch

    from qray.measure.costs import time_parts
    from qray.measure.host import cpu_flags, load_average
    from qray.model.regressor import model_from_state

    load = load_average()
    torch.set_num_threads(THREADS)
    spec = ClipSpec.model_validate(request["clip"])
    model = model_from_state(NETWORK.validate_python(request["model"]), checkpoint)
    with ExitStack() as kept:
        decoders, failed = _decoders(spec, request["videos"], kept)
        blocks_ms = time_parts(decoders, model, Measure.model_validate(request["measure"]))
    return {
        "blocks_ms": blocks_ms, "clips": len(decoders), "failed_clips": failed, "frames": spec.frames,
        "image_size": spec.image_size,
        "method": "fp32", "engine": "eager", "threads": THREADS, "batch": 1,
        "cpu_flags": " ".join(sorted(cpu_flags())), "load_average": None if np.isnan(load) else load,
    }  # fmt: skip


if __name__ == "__main__":
    pin_to_given_cores()
    result = _measure_here(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]).read_bytes())
    Path(sys.argv[3]).write_text(json.dumps(result), encoding="utf-8")
