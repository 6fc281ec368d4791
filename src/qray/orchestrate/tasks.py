"""What the driver asks of the cluster: jobs, and the Ray tasks that do them.

Light, since the driver needs no torch: what does the work is imported where it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray

from qray.data.stream import StreamPlan
from qray.orchestrate.clips import SplitClips
from qray.study import ClipSpec, Model, Sensitivity, Training, Variant


@dataclass(frozen=True)
class TrainJob:
    """An FP32 training: from scratch, or (with `start`) the control that goes on from a checkpoint as QAT does."""

    name: str
    model: Model
    training: Training
    clip: ClipSpec
    seed: int
    slot_cpus: float
    timeout_s: float
    board: Any
    freeze_batch_norm_at: float = 1.0


@dataclass(frozen=True)
class SweepJob:
    """What every trial shares. `training` holds the settings that are not swept."""

    model: Model
    training: Training
    clip: ClipSpec
    seed: int
    slot_cpus: float
    options: dict[str, Any]
    max_concurrent: int
    timeout_s: float
    storage: str
    board: Any


@dataclass(frozen=True)
class BuildJob:
    """A variant to build, for an instruction set, and how its clips are read."""

    variant: Variant
    key: str
    isa: str
    model: Model
    clip: ClipSpec
    calibration_batch: int
    slot_cpus: float
    timeout_s: float
    qat_settings: dict[str, Any] | None = None


@dataclass(frozen=True)
class EvaluateJob:
    """One artifact to evaluate: the name it has in the dashboard, and the stream it reads."""

    name: str
    plan: StreamPlan
    board: Any


@dataclass(frozen=True)
class LayersJob:
    """Layers to measure in one task, on the network that PTQ with these settings would ship."""

    layers: tuple[str, ...]
    isa: str
    model: Model
    clip: ClipSpec
    settings: Sensitivity
    calibration_batch: int
    plan: StreamPlan

    @property
    def title(self) -> str:
        """The first and the last layer."""
        return self.layers[0] if len(self.layers) == 1 else f"{self.layers[0]}..{self.layers[-1]}"


@ray.remote(num_returns="streaming", max_retries=0)
def train(job: TrainJob, clips: SplitClips, start: bytes | None, resume: bytes | None) -> Iterator[Any]:
    """`work.train`."""
    from qray.orchestrate import work

    yield from work.train(job, clips, start, resume)


@ray.remote(max_retries=0)
def validate(job: EvaluateJob, model: Model, checkpoint: bytes, val: SplitClips) -> dict[str, Any]:
    """`work.validate`."""
    from qray.orchestrate import work

    return work.validate(job, model, checkpoint, val)


@ray.remote(num_cpus=0, max_retries=0)
def sweep(
    job: SweepJob, trials: list[dict[str, Any]], weights: bytes, train: SplitClips, val: SplitClips,
    reached: dict[str, Any], mailbox: Any,
) -> dict[str, str]:  # fmt: skip
    """`sweep.run_trials`."""
    from qray.orchestrate.sweep import run_trials

    return run_trials(job, trials, weights, train, val, reached, mailbox)


def _build(job: BuildJob, weights: bytes, clips: dict[str, SplitClips], qat_weights: bytes | None) -> dict[str, Any]:
    """`work.build`."""
    from qray.orchestrate import work

    return work.build(job, weights, clips, qat_weights)


build = ray.remote(max_retries=0)(_build)
#: Its worker process is not used again. Options of a call cannot say so.
build_and_exit = ray.remote(max_calls=1, max_retries=0)(_build)


@ray.remote(max_retries=0)
def measure_layers(job: LayersJob, weights: bytes, calibration: SplitClips, val: SplitClips) -> dict[str, Any]:
    """`work.measure_layers`."""
    from qray.orchestrate import work

    return work.measure_layers(job, weights, calibration, val)
