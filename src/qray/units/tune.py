"""The QAT sweep: Ray Tune runs the trials of a rung; the only importer of ray.tune.

Tune's own storage is scheduler memory. Weights and figures of a trial travel through a mailbox to the driver, which
writes them as a unit after each epoch; a sweep that was killed goes on from those. Who goes on to the next rung is
decided between rungs, by `halving`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray
from ray import tune

from qray.graph.ray_backend import lost
from qray.model.epoch import Checkpoint
from qray.reasons import reason_of
from qray.units.clips import SplitClips
from qray.units.sweep import SweepJob
from qray.units.trial import train_qat
from qray.units.trials import group_name, trial_name


class QatTrial(tune.Trainable):
    """A trial as Tune runs it: an actor that bears the trial's name, one epoch of `trial.train_qat` a step."""

    def setup(
        self, config: dict[str, Any], job: SweepJob, weights: Checkpoint, train: SplitClips, val: SplitClips,
        reached: dict[str, Any], mailbox: Any,
    ) -> None:  # fmt: skip
        """Keep what an epoch needs; nothing is computed before the first step."""
        trial = config["trial"]
        self._mailbox, self._until = mailbox, trial["until"]
        resume = ray.get(reached[trial["key"]]) if trial["key"] in reached else None
        self._timeout_s = job.study.evaluation.batch_timeout_s
        self._epochs = train_qat(trial_name(trial), trial, job, weights, train, val, resume)

    def step(self) -> dict[str, Any]:
        """Train and validate one epoch, and leave its weights in the mailbox."""
        item = next(self._epochs)
        ray.get(self._mailbox.post.remote(item), timeout=self._timeout_s)
        done = item["epoch"] == self._until or item["status"] != "ok"
        # A diverged trial has no VAL MAE, and Tune wants a number.
        val_mae = item["val_mae"] if item["status"] == "ok" else float("inf")
        return {"epoch": item["epoch"], "val_mae": val_mae, "done": done}

    def cleanup(self) -> None:
        """End the trial's streams, also when it was interrupted."""
        self._epochs.close()

    def __repr__(self) -> str:
        return trial_name(self.config["trial"])


def run_trials(
    job: SweepJob,
    trials: list[dict[str, Any]],
    weights: Any,
    train: SplitClips,
    val: SplitClips,
    reached: dict[str, Any],
    mailbox: Any,
) -> dict[str, tuple[str, bool]]:
    """Run trials of a plan, each up to epoch `trial["until"]`, from its newest checkpoint if it has one (`reached`: by
    key, references). Returns of those that did not come so far, by key, the reason and whether the process or its node
    went."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Tune would copy the session's working directory into every trial's folder.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    trainable = tune.with_parameters(
        QatTrial, job=job, weights=weights, train=train, val=val, reached=reached, mailbox=mailbox
    )
    slot = {"CPU": job.options["num_cpus"], "GPU": job.options.get("num_gpus", 0)}
    trainable = tune.with_resources(
        trainable, lambda config: tune.PlacementGroupFactory([slot], name=group_name(config["trial"]))
    )
    # The dashboard lists actors by their class, which would be one of Tune's, local to a function.
    trainable.__name__ = trainable.__qualname__ = QatTrial.__name__
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(
            metric="val_mae", mode="min", max_concurrent_trials=job.concurrent, reuse_actors=False,
            trial_name_creator=lambda trial: trial_name(trial.config["trial"]),
            trial_dirname_creator=lambda trial: trial_name(trial.config["trial"]),
        ),
        run_config=tune.RunConfig(
            name="qat", storage_path=str(Path(job.storage).resolve()), verbose=0, log_to_file=True,
            # Weights travel through the mailbox: Tune has nothing to keep.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
        ),
    )  # fmt: skip
    # One that was lost before its first word has no settings in its result.
    keys = {trial_name(trial): trial["key"] for trial in trials}
    ended = [(keys[Path(result.path).name], result.error) for result in tuner.fit()]
    return {key: (reason_of(str(error)), bool(lost(error))) for key, error in ended if error}
