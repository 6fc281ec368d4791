"""A training by several workers, through Ray Train; the only importer of ray.train.

Ray Train's own storage holds nothing: the first worker puts what each epoch left into a mailbox, and the driver writes
it as it writes that of a training by one. A group of workers that lost one ends, and the driver starts another, which
goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from qray.data.stream import clip_datasets, dashboard_name
from qray.errors import QrayError
from qray.graph.placement import whereabouts
from qray.model.epoch import Checkpoint
from qray.model.share import Share
from qray.reasons import reason_of
from qray.scratch import scratch_folder
from qray.study import Training
from qray.units.clips import Job, SplitClips
from qray.units.train import train
from qray.units.work import Worker, first_epoch, training_threads

#: How often Ray Train tries to start the workers, of which it waits a minute for their CPUs and GPUs.
STARTS = 20
#: A worker waits for the others longer than any of them for a batch, so that who waits for a batch says so first.
WAITS = 2


def run_workers(
    job: Job, name: str, training: Training, clips: SplitClips, start: Checkpoint | None, resume: Checkpoint | None,
    freeze_batch_norm_at: float, mailbox: Any, options: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Do what `train.train` does by `training.workers` workers, each with these `options` of a task.

    What that yields is posted to the mailbox, and the error instead that one of qray's own ended it with. Returns
    {"lost": why} where it ended otherwise, as it does when a worker is killed, else an empty dictionary.
    """
    # It would change to a folder of its own, and make it.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    plan = job.train_plan(training, first_epoch(resume), training.epochs, training.workers)
    (dataset,) = clip_datasets(clips.ref, len(clips.clips), plan, name)
    timeout_s = job.study.evaluation.batch_timeout_s

    def work() -> None:
        context = ray.train.get_context()
        worker = Worker(
            str(get_device()), training_threads(context.get_local_world_size()),
            Share(context.get_world_rank(), context.get_world_size()), ray.train.get_dataset_shard("train"),
        )  # fmt: skip
        try:
            for item in train(job, name, training, clips, start, resume, freeze_batch_norm_at, worker):
                if worker.share.rank == 0:
                    more = whereabouts() if isinstance(item, dict) else {}
                    ray.get(mailbox.post.remote(item | more if more else item), timeout=timeout_s)
        except QrayError as error:
            ray.get(mailbox.post.remote(error), timeout=timeout_s)
            raise

    resources = {"CPU": options["num_cpus"], "GPU": options.get("num_gpus", 0)}
    # A worker that is lost is not replaced here: another group would read the stream from the start.
    failures = ray.train.FailureConfig(max_failures=0, controller_failure_limit=STARTS, max_preemption_failures=0)
    with scratch_folder("train") as folder, _signals_kept():
        trainer = TorchTrainer(
            work,
            torch_config=TorchConfig(timeout_s=int(WAITS * timeout_s) + 1),
            scaling_config=ray.train.ScalingConfig(
                num_workers=training.workers, use_gpu="num_gpus" in options, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name=dashboard_name(name), storage_path=str(folder), failure_config=failures, callbacks=[_Named(name)],
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
            datasets={"train": dataset},
        )  # fmt: skip
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            return {"lost": _why(error)}
    return {}


class _Named(ray.train.UserCallback):
    """Has the dashboard call the workers by what they train: Ray Train has no setting for that. It reads this in the
    process that starts them. Were its class another one day, they would bear that one's name and work as before."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        label = f"worker:{self.name}"
        with contextlib.suppress(ImportError, AttributeError):
            from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

            kind = WorkerGroup._worker_cls
            WorkerGroup._worker_cls = type(kind.__name__, (kind,), {"__repr__": lambda _: label})


def _why(error: Exception) -> str:
    """The words of the workers that failed rather than those of Ray Train, which tells each with its traceback."""
    each = sorted(getattr(error, "worker_failures", {}).items())
    return "; ".join(f"worker {rank + 1}: {reason_of(str(said))}" for rank, said in each) or reason_of(str(error))


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray Train leaves its handler of Ctrl-C in the process, which does other work after this."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
