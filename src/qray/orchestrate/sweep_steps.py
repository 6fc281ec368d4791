"""The steps of the QAT sweep: one a rung, and each trial a unit after each of its epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qray.errors import QrayError
from qray.orchestrate.context import RunContext
from qray.orchestrate.halving import Standing, rungs, standings
from qray.orchestrate.plan import Plan
from qray.orchestrate.steps import Step
from qray.orchestrate.store import Store
from qray.orchestrate.tasks import SweepJob, sweep
from qray.orchestrate.telemetry import free_actor_name
from qray.orchestrate.trials import Mailbox, best_trials, trial_name

MAILBOX_TIMEOUT_S = 300.0
#: A sweep is silent until its last trial ends; each trial's stream has a time limit of its own.
SWEEP_SILENCE_S = 24 * 3600.0


class _Trials:
    """The trials of a sweep: how far each is, what the next rung has to run, and what a running one leaves."""

    def __init__(self, run: RunContext) -> None:
        self.run = run
        self.mailbox: Any = None
        self._asked: Any = None

    def standings(self) -> list[Standing]:
        """Where each trial of the plan stands."""
        return trial_standings(self.run.store, self.run.plan)

    def due(self) -> list[dict[str, Any]]:
        """Trials that the present rung has to run, with the epoch that they run to."""
        pairs = zip(self.run.plan.trials, self.standings(), strict=True)
        return [trial | {"until": s.epochs} for trial, s in pairs if s.state == "run"]

    def reached(self, due: list[dict[str, Any]]) -> dict[str, Any]:
        """References to the newest checkpoints of those that have begun, by key."""
        found = {}
        for trial in due:
            for epoch in reversed(range(trial["until"] - 1)):
                path = self.run.store.checkpoint_path(trial["key"], epoch)
                # One without a record was left by a kill between the two.
                if path.is_file() and self.run.store.get("trial", trial["keys"][epoch]) is not None:
                    found[trial["key"]] = ray.put(path.read_bytes())
                    break
        return found

    def poll(self, wait_s: float = 0.0) -> None:
        """Take what has come; by default without waiting, since the loop that polls serves all other steps too."""
        if self.mailbox is None:
            return
        self._asked = self._asked or self.mailbox.take.remote()
        if not ray.wait([self._asked], timeout=wait_s)[0]:
            return
        items, self._asked = ray.get(self._asked), None
        for item in items:
            self.save(item)

    def save(self, item: dict[str, Any]) -> None:
        """Write what a trial is after an epoch as a unit, and only then remove the checkpoint before."""
        store, name = self.run.store, trial_name({"key": item["trial"], "settings": item["settings"]})
        epoch, epochs, checkpoint = item["epoch"], item["settings"]["epochs"], item.pop("checkpoint", None)
        record = item | {"label": f"trial {name}, epoch {epoch} of {epochs}", "files": []}
        if checkpoint is None:
            store.put("trial", item["key"], record)
            self.run.runner.on_end()
            self.run.runner.say(f"trial {name} diverged in epoch {epoch}: {item['reason']}", "red")
            return
        path = store.write_checkpoint(item["trial"], epoch - 1, checkpoint)
        # Only a whole trial is ever built from; before that the newest checkpoint is there to go on from.
        store.put("trial", item["key"], record | ({"files": [store.relative(path)]} if epoch == epochs else {}))
        store.forget_checkpoints(item["trial"], epoch - 1)
        self.run.runner.on_end()
        self.run.name_failed("QAT", item["failed_clips"])
        said = f"epoch {epoch}/{epochs}, loss {item['loss']:.4f}, VAL MAE {item['val_mae']:.3f}"
        self.run.runner.say(f"trial {name}: {said}")

    def end(self, failed: dict[str, str]) -> None:
        """Take what is left.

        Raises:
            QrayError: a trial did not come as far as it should have: who goes on cannot be decided without it.
        """
        # Twice: the first answer may have been asked for before the last trial posted.
        for _ in range(2):
            self.poll(MAILBOX_TIMEOUT_S)
        if failed:
            names = {trial["key"]: trial_name(trial) for trial in self.run.plan.trials}
            for key, reason in failed.items():
                self.run.runner.say(f"trial {names[key]} failed: {reason}", "red")
            key, reason = next(iter(failed.items()))
            raise QrayError(
                f"{len(failed)} of {len(names)} QAT trials did not finish; the next run tries them again: "
                f"{names[key]}: {reason}"
            )


def trial_record(store: Store, trial: dict[str, Any], epochs: int) -> dict[str, Any] | None:
    """The record of a trial after so many epochs, or of the epoch before in which it diverged; None without either."""
    for key in trial["keys"][:epochs]:
        record = store.get("trial", key)
        if record is not None and record["status"] != "ok":
            return record
    return store.get("trial", trial["keys"][epochs - 1])


def trial_standings(store: Store, plan: Plan) -> list[Standing]:
    """Where each QAT trial of a plan stands, by what OUT holds."""
    if plan.study.sweep is None:
        return []

    def score(trial: int, epoch: int) -> float | None:
        record = trial_record(store, plan.trials[trial], epoch)
        if record is None:
            return None
        return record["val_mae"] if record["status"] == "ok" else math.inf

    return standings([t["settings"] for t in plan.trials], score, plan.study.sweep.reduction_factor)


def sweep_steps(run: RunContext) -> list[Step]:
    """Run the QAT trials rung by rung; each step runs those that are due at its rung, from where they are. The last is
    the sweep itself, which names the best."""
    study, plan, store, settings = run.study, run.plan, run.store, run.study.sweep
    if settings is None:
        raise QrayError(f"study {study.name} has no `sweep:` section, so there is nothing to sweep")
    trials = _Trials(run)
    concurrent = max(1, min(settings.max_concurrent, run.slots.holders - 1))
    if run.slots.gpus >= 1:
        concurrent = max(1, min(concurrent, int(run.slots.gpus)))

    def start() -> Any:
        due = trials.due()
        if not due:
            return ray.put({})
        trials.mailbox = ray.remote(num_cpus=0)(Mailbox).options(name=free_actor_name("mailbox:qat")).remote()
        job = SweepJob(
            study.model, study.training, study.clip, study.seed, run.slots.slot_cpus, run.slots.training_options(),
            concurrent, run.timeout_s, str(store.out / "sweep"), run.board,
        )  # fmt: skip
        run.runner.say(f"sweep: {len(due)} of {len(plan.trials)} QAT trials to run, {concurrent} at a time")
        # Tune's storage is a folder of OUT, which the driver's node is sure to have.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return sweep.options(name="sweep:qat", scheduling_strategy=here).remote(
            job, due, run.checkpoint(plan.train), run.split("TRAIN"), run.split("VAL"), trials.reached(due),
            trials.mailbox,
        )  # fmt: skip

    def finish_rung(failed: dict[str, str]) -> dict[str, Any]:
        trials.end(failed)
        return {}

    def finish(failed: dict[str, str]) -> dict[str, Any]:
        trials.end(failed)
        whole = [t["key"] for t, s in zip(plan.trials, trials.standings(), strict=True) if s.state == "whole"]
        best = best_trials([record for key in whole if (record := store.get("trial", key)) is not None])
        missing = {v.weight_bits for v in study.variants if v.method in ("qat", "finetune")} - set(best)
        if missing:
            raise QrayError(f"every QAT trial of {sorted(missing)} bits diverged; lower sweep.lr")
        for bits, trial in sorted(best.items()):
            run.runner.say(f"sweep: best of {bits} bits is {trial['key'][:6]}, VAL MAE {trial['val_mae']:.3f}")
        return {"best": {str(bits): trial for bits, trial in best.items()}}

    def step(kind: str | None, key: str, label: str, after: str, finish: Callable[[Any], dict[str, Any]]) -> Step:
        return Step(kind, key, label, start, finish, after=[after], slots=concurrent, poll=trials.poll,
                    silence_s=SWEEP_SILENCE_S)  # fmt: skip

    title = f"sweep {len(plan.trials)} QAT trials"
    if store.get("sweep", plan.sweep) is not None:
        return [step("sweep", plan.sweep, title, plan.train, finish)]
    *inner, _ = rungs(max(settings.epochs), settings.reduction_factor)
    steps: list[Step] = []
    for rung in inner:
        after = steps[-1].key if steps else plan.train
        steps.append(step(None, f"{plan.sweep}-{rung}", f"sweep up to epoch {rung}", after, finish_rung))
    after = steps[-1].key if steps else plan.train
    return [*steps, step("sweep", plan.sweep, title, after, finish)]
