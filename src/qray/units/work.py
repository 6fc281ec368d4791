"""What tasks that need torch have in common: networks from checkpoints, and clips as training and observers take
them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import ray
import torch

from qray.data.stream import clip_datasets, stream_batches
from qray.data.stream_plan import StreamPlan
from qray.errors import QrayError
from qray.graph.telemetry import Telemetry
from qray.measure.host import usable_cpus
from qray.model.epoch import Checkpoint
from qray.model.regressor import VideoRegressor, build_regressor
from qray.model.regressor import model_from_state as model_from_state
from qray.model.share import ALONE, Share
from qray.model.training import TrainBatch, load_checkpoint
from qray.study import Imported, Model, Training
from qray.units.clips import Job, SplitClips


def training_device() -> str:
    """The device a training task was given."""
    return "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"


def training_threads(share: int = 1) -> int:
    """CPU threads of one of `share` training tasks that run at once on this node."""
    return max(1, usable_cpus() // share)


@dataclass(frozen=True)
class Worker:
    """Where a training is done and, if several do it, which part of it is this one's: `shard` is its part of the stream
    (a `ray.data.DataIterator`)."""

    device: str
    threads: int
    share: Share = ALONE
    shard: Any = None


def only_worker() -> Worker:
    """Of a training that a task of its own does."""
    return Worker(training_device(), training_threads())


def new_model(study_model: Model, target: pd.Series, seed: int) -> VideoRegressor:
    """The untrained model of a study, for the targets of TRAIN."""
    mean, std = (float(target.mean()), target_spread(target)) if study_model.standardize_target else (0.0, 1.0)
    return build_regressor(study_model, mean, std, seed)


def target_spread(target: pd.Series) -> float:
    """Standard deviation of targets.

    Raises:
        QrayError: they are all the same.
    """
    std = float(target.std(ddof=0))
    if not std > 0:
        raise QrayError(f"all {len(target)} TRAIN targets are {target.iloc[0]:g}: there is nothing to learn")
    return std


def loss_scale(model: VideoRegressor, study_model: Model | Imported, target: pd.Series) -> float:
    """What errors are divided by in a loss; an imported network may give target units as they are."""
    return target_spread(target) if isinstance(study_model, Imported) else model.target_spread


def training_stream(
    job: Job, name: str, clips: SplitClips, training: Training, resume: Checkpoint | None, epochs: int,
    worker: Worker | None = None,
) -> tuple[StreamPlan, Iterator[TrainBatch], dict[int, str], Telemetry]:  # fmt: skip
    """What a training reads, up to so many epochs, from the start or its checkpoint on: the plan, the batches, and the
    reasons of clips that failed, which come with the batches and have weight 0 there. And where it reports. name: the
    variant's or the trial's.

    A worker of several is given its part of each batch, the first of them reports for all, and batches that hold other
    clips than its own end in a QrayError.
    """
    share, shard = (worker.share, worker.shard) if worker else (ALONE, None)
    plan = job.train_plan(training, first_epoch(resume), epochs, share.workers)
    targets, failed = clips.clips["target"].to_numpy(np.float32), dict[int, str]()
    stream = f"train {name}"
    of_all = f"{stream} {share.rank + 1} of {share.workers}" if share.workers > 1 else stream

    def batches() -> Iterator[TrainBatch]:
        datasets = clip_datasets(clips.ref, len(targets), plan, stream) if shard is None else [shard]
        expected = plan.shard_clips(len(targets), share.rank)
        for batch in stream_batches(datasets, plan, of_all, plan.shard_rows(len(targets))):
            there = batch.index >= 0
            failed.update(batch.failed)
            if not np.array_equal(batch.index[there], wanted := next(expected)):
                raise QrayError(f"the stream of {of_all} gave clips {batch.index.tolist()}, not {wanted.tolist()}")
            yield TrainBatch(
                torch.from_numpy(batch.frames[there] if not there.all() else batch.frames).squeeze(1),
                torch.from_numpy(targets[wanted]),
                torch.from_numpy(batch.ok[there].astype(np.float32)),
            )

    per_epoch = plan.rows_per_epoch(len(targets))
    board = job.board if share.rank == 0 else None
    telemetry = Telemetry("train", name, board, plan.epochs * per_epoch, plan.first_epoch * per_epoch)
    return plan, batches(), failed, telemetry


def first_epoch(resume: Checkpoint | None) -> int:
    """The first epoch (from 0) that a training does which goes on from a checkpoint, or begins without one."""
    return int(load_checkpoint(resume)["epoch"]) + 1 if resume is not None else 0


def fixed_batches(clips: SplitClips, job: Job, name: str) -> tuple[list[torch.Tensor], dict[int, str]]:
    """What observers see: one window of each clip, as training sees them, but fixed; uint8 (b, T, H, W, 3). And the
    reasons of clips that failed. `name` says what they are for.

    Raises:
        QrayError: more of them than may fail.
    """
    plan = job.eval_plan(job.study.clip.single_window(), job.study.calibration.batch_size)
    datasets = clip_datasets(clips.ref, len(clips.clips), plan, name)
    failed: dict[int, str] = {}
    batches = []
    for batch in stream_batches(datasets, plan, name):
        failed |= batch.failed
        if batch.ok.any():
            batches.append(torch.from_numpy(batch.frames[batch.ok]).flatten(0, 1))
    clips.check(name, failed)
    return batches, failed
