"""The QAT sweep: rung by rung, and each trial a unit of its own after each of its epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qray.errors import QrayError
from qray.graph.runner import RESTARTS
from qray.graph.store import Store, mapped
from qray.graph.unit import Resources, Task, Unit, unit_key
from qray.measure.isa import range_is_reduced
from qray.model.epoch import Checkpoint
from qray.study import Study
from qray.units.clips import Job, SplitClips
from qray.units.context import RunContext
from qray.units.halving import Standing, standings
from qray.units.mailbox import Letters
from qray.units.trials import best_trials, group_name, trial_name, trial_settings

#: Of what a trial is after an epoch; raised when the code changes what comes out.
TRIAL_VERSION = 2


def sweep_unit(study: Study, isa: str, train: Unit, digests: Mapping[str, str]) -> Unit | None:
    """The QAT sweep of a study, which names the best trial of each weight width; None where it has none."""
    if study.sweep is None:
        return None
    trials = []
    for drawn in trial_settings(study.sweep, study.seed):
        settings = drawn | {"reduce_range": range_is_reduced(isa, drawn["weight_bits"])}
        depends = {"settings": settings, "train": train, "val": digests["VAL"], "seed": study.seed}
        keys = [unit_key("trial", TRIAL_VERSION, depends | {"epochs": e + 1}) for e in range(settings["epochs"])]
        trials.append({"keys": keys, "key": keys[-1], "settings": settings})
    factor, widths = study.sweep.reduction_factor, {v.weight_bits for v in study.variants if v.of_sweep}
    depends = {"trials": [trial["key"] for trial in trials], "reduction_factor": factor}
    task = Sweep(tuple(trials), train, factor, frozenset(widths), study.sweep.max_concurrent)
    return Unit("sweep", "qat", task, depends, after=(train,), title=f"sweep {len(trials)} QAT trials")


@dataclass(frozen=True)
class SweepJob(Job):
    """What every trial shares: its resources, how many run at a time, and the folder of Tune's own storage."""

    options: dict[str, Any]
    concurrent: int
    storage: str


@dataclass
class Sweep(Task):
    """Starts the trials that the present rung has to run, from where they are, and is started again for the next.

    trials: {"keys", "key", "settings"} of each: the key of what it is after 1, 2, ... epochs, and the last of them.
    widths: those of which a variant wants the best.
    """

    trials: tuple[dict[str, Any], ...]
    train: Unit
    reduction_factor: int
    widths: frozenset[int]
    max_concurrent: int
    version = 2
    #: It is silent until its last trial ends; each trial's stream has a time limit of its own.
    silence_s = 24 * 3600.0
    _letters: Letters | None = None
    #: How often trials were started again whose processes went, since one of them was heard of.
    _restarts: int = 0

    def __post_init__(self) -> None:
        self.resources = Resources(slots=self.max_concurrent, here=True, inner_gpus=True)

    def standings(self, store: Store) -> list[Standing]:
        """Where each trial stands, by what OUT holds."""

        def score(trial: int, epoch: int) -> float | None:
            record = trial_record(store, self.trials[trial], epoch)
            if record is None:
                return None
            return record["val_mae"] if record["status"] == "ok" else math.inf

        return standings([t["settings"] for t in self.trials], score, self.reduction_factor)

    def abandoned(self, unit: Unit, run: RunContext) -> None:
        # Ray keeps what Tune reserves to the end of the run, also where Tune's process is gone.
        run.backend.free(map(group_name, self.trials))

    def start(self, unit: Unit, run: RunContext) -> Any:
        self._take_all(run)
        # What was ended by force may have reserved something with its last breath.
        self.abandoned(unit, run)
        pairs = zip(self.trials, self.standings(run.store), strict=True)
        due = [trial | {"until": s.epochs} for trial, s in pairs if s.state == "run"]
        if not due:
            return run.backend.done({"failed": {}})
        slots = run.backend.slots
        concurrent = max(1, min(self.max_concurrent, slots.holders - 1))
        if slots.gpus >= 1:
            concurrent = max(1, min(concurrent, int(slots.gpus)))
        self._letters = Letters("mailbox:qat")
        job = SweepJob(**vars(run.job), options=slots.options(gpu=True), concurrent=concurrent,
                       storage=str(run.store.out / "sweep"))  # fmt: skip
        run.runner.say(f"sweep: {len(due)} of {len(self.trials)} QAT trials to run, {concurrent} at a time")
        return run.backend.submit(
            unit, sweep, job, due, run.checkpoint(self.train.key), run.split("TRAIN"), run.split("VAL"),
            self._reached(due, run.store), self._letters.mailbox,
        )  # fmt: skip

    def _reached(self, due: list[dict[str, Any]], store: Store) -> dict[str, Any]:
        """References to the newest checkpoints of those that have begun, by key."""
        import ray

        found = {}
        for trial in due:
            store.bring_checkpoints(trial["key"])
            for epoch in reversed(range(trial["until"] - 1)):
                path = store.checkpoint_path(trial["key"], epoch)
                # One without a record was left by a kill between the two.
                if path.is_file() and store.get("trial", trial["keys"][epoch]) is not None:
                    found[trial["key"]] = ray.put(mapped(path))
                    break
        return found

    def _take_all(self, run: RunContext) -> None:
        """The rest of what trials have left, also where what ran them is gone."""
        for item in self._letters.take_all() if self._letters else ():
            self._save(item, run)
        self._letters = None

    def poll(self, unit: Unit, run: RunContext) -> bool:
        items = self._letters.take() if self._letters else []
        for item in items:
            self._restarts = 0
            self._save(item, run)
        return bool(items)

    def _save(self, item: dict[str, Any], run: RunContext) -> None:
        """Write what a trial is after an epoch as a unit, and only then remove the checkpoint before."""
        store, name = run.store, trial_name({"key": item["trial"], "settings": item["settings"]})
        epoch, epochs, checkpoint = item["epoch"], item["settings"]["epochs"], item.pop("checkpoint", None)
        record = item | {"label": f"trial {name}, epoch {epoch} of {epochs}", "files": []}
        if checkpoint is None:
            store.put("trial", item["key"], record)
            run.runner.on_end()
            run.runner.say(f"trial {name} diverged in epoch {epoch}: {item['reason']}", "red")
            return
        path = store.write_checkpoint(item["trial"], epoch - 1, checkpoint)
        # Only a whole trial is ever built from; before that the newest checkpoint is there to go on from.
        store.put("trial", item["key"], record | ({"files": [store.relative(path)]} if epoch == epochs else {}))
        store.forget_checkpoints(item["trial"], epoch - 1)
        run.runner.on_end()
        run.name_failed("QAT", item["failed_clips"])
        said = f"epoch {epoch}/{epochs}, loss {item['loss']:.4f}, VAL MAE {item['val_mae']:.3f}"
        run.runner.say(f"trial {name}: {said}")

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any] | None:
        """`value["failed"]`: of trials that failed, by key, the reason and whether their process went. Who goes on can
        not be told without them."""
        self._take_all(run)
        if failed := value["failed"]:
            names = {trial["key"]: trial_name(trial) for trial in self.trials}
            again = all(lost for _, lost in failed.values()) and self._restarts < RESTARTS
            self._restarts += again
            how = "was lost, and goes on from its last epoch" if again else "failed"
            for key, (reason, _) in failed.items():
                run.runner.say(f"trial {names[key]} {how}: {reason}", "yellow" if again else "red")
            if again:
                return None
            key, (reason, _) = next(iter(failed.items()))
            raise QrayError(
                f"{len(failed)} of {len(names)} QAT trials did not finish; the next run tries them again: "
                f"{names[key]}: {reason}"
            )
        states = self.standings(run.store)
        if any(standing.state == "run" for standing in states):
            return None
        whole = [t["key"] for t, s in zip(self.trials, states, strict=True) if s.state == "whole"]
        best = best_trials([record for key in whole if (record := run.store.get("trial", key)) is not None])
        if missing := self.widths - set(best):
            raise QrayError(f"every QAT trial of {sorted(missing)} bits diverged; lower sweep.lr")
        for bits, trial in sorted(best.items()):
            run.runner.say(f"sweep: best of {bits} bits is {trial['key'][:6]}, VAL MAE {trial['val_mae']:.3f}")
        return {"best": {str(bits): trial for bits, trial in best.items()}}


def trial_record(store: Store, trial: dict[str, Any], epochs: int) -> dict[str, Any] | None:
    """The record of a trial after so many epochs, or of the epoch before in which it diverged; None without either."""
    for key in trial["keys"][:epochs]:
        record = store.get("trial", key)
        if record is not None and record["status"] != "ok":
            return record
    return store.get("trial", trial["keys"][epochs - 1])


def sweep(
    job: SweepJob, trials: list[dict[str, Any]], weights: Checkpoint, train: SplitClips, val: SplitClips,
    reached: dict[str, Any], mailbox: Any,
) -> dict[str, Any]:  # fmt: skip
    """{"failed": `tune.run_trials`}, with Tune imported where it runs."""
    from qray.units.tune import run_trials

    return {"failed": run_trials(job, trials, weights, train, val, reached, mailbox)}
