"""What tasks that need torch have in common: networks from checkpoints, and clips as training and observers take
them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import ray
import torch

from qray.data.stream import Batch, clip_dataset, stream_batches
from qray.errors import QrayError
from qray.measure.host import usable_cpus
from qray.model.regressor import VideoRegressor, build_regressor
from qray.model.training import TrainBatch, load_checkpoint
from qray.study import Model
from qray.units.clips import Job, SplitClips


def training_device() -> str:
    """The device a training task was given."""
    return "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"


def training_threads(share: int = 1) -> int:
    """CPU threads of one of `share` training tasks that run at once on this node."""
    return max(1, usable_cpus() // share)


def target_statistics(clips: pd.DataFrame) -> tuple[float, float]:
    """Mean and standard deviation of the TRAIN targets, target units."""
    std = float(clips["target"].std(ddof=0))
    if not std > 0:
        raise QrayError(f"all {len(clips)} TRAIN targets are {clips['target'].iloc[0]:g}: there is nothing to learn")
    return float(clips["target"].mean()), std


def new_model(study_model: Model, clips: pd.DataFrame, seed: int) -> VideoRegressor:
    """The untrained model of a study."""
    mean, std = target_statistics(clips) if study_model.standardize_target else (0.0, 1.0)
    return build_regressor(study_model, mean, std, seed)


def model_from_state(study_model: Model, checkpoint: bytes) -> VideoRegressor:
    """A trained model in eval mode from a checkpoint."""
    model = VideoRegressor(study_model)
    model.load_state_dict(load_checkpoint(checkpoint)["model"])
    return model.eval()


def next_epoch(checkpoint: bytes | None) -> int:
    """The epoch that a training goes on with, from 0."""
    return int(load_checkpoint(checkpoint)["epoch"]) + 1 if checkpoint else 0


def to_train_batches(batches: Iterator[Batch], targets: np.ndarray, failed: dict[int, str]) -> Iterator[TrainBatch]:
    """Add targets to streamed batches; a clip that failed gets weight 0 and its reason goes into `failed`."""
    for batch in batches:
        failed |= batch.failed
        yield TrainBatch(
            torch.from_numpy(batch.frames).squeeze(1),
            torch.from_numpy(targets[batch.index].astype(np.float32)),
            torch.from_numpy(batch.ok.astype(np.float32)),
        )


def fixed_batches(clips: SplitClips, job: Job, name: str) -> tuple[list[torch.Tensor], dict[int, str]]:
    """What observers see: one window of each clip, as training sees them, but fixed; uint8 (b, T, H, W, 3). And the
    reasons of clips that failed. `name` says what they are for.

    Raises:
        QrayError: more of them than may fail.
    """
    plan = job.eval_plan(job.study.clip.single_window(), job.study.calibration.batch_size)
    dataset = clip_dataset(clips.ref, len(clips.clips), plan)
    failed: dict[int, str] = {}
    batches = []
    for batch in stream_batches(dataset, plan, name):
        failed |= batch.failed
        if batch.ok.any():
            batches.append(torch.from_numpy(batch.frames[batch.ok]).flatten(0, 1))
    clips.check(name, failed)
    return batches, failed
