"""Write run.json as units end, so that after any kill the table can be written from what was finished."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qray.errors import QrayError
from qray.judge.index import At, Index, PointUnits, Result, TrialState, read_index, write_index
from qray.measure.host import provenance_here
from qray.measure.isa import Machine
from qray.orchestrate.costs import costs_key
from qray.orchestrate.measuring import latency_key, memory_key, memory_step, points
from qray.orchestrate.plan import Plan
from qray.orchestrate.sensitivity import sensitivity_key
from qray.orchestrate.store import Store
from qray.orchestrate.sweep_steps import trial_record, trial_standings
from qray.orchestrate.trials import trial_name
from qray.study import Variant


@dataclass
class Recorder:
    """Writes the index of one run. results: how its units ended so far, by key; the run goes on filling it."""

    store: Store
    plan: Plan
    stage: str
    started: float
    machine: Machine
    results: dict[str, Result]

    def __post_init__(self) -> None:
        try:
            # What earlier runs say of units that this one does not try is kept.
            self._earlier = dict(read_index(self.store.out).ended)
        except QrayError:
            self._earlier = {}

    def write(self) -> None:
        """Write run.json as things stand."""
        store, plan = self.store, self.plan
        shared = {"train": plan.train, "sweep": plan.sweep, "costs": costs_key(plan)}
        if (key := sensitivity_key(plan)) is not None:
            shared["sensitivity"] = key
        write_index(
            store.out,
            Index(
                self.stage, self.started, self.machine, shared,
                {variant.name: self._variant(variant) for variant in plan.study.variants}, plan.baseline_key(),
                tuple(self._trials()), tuple(self._point(at) for at in points(plan.study.measure)), self._ended(),
                plan.study.verdict.model_dump(mode="json"),
            ),
        )  # fmt: skip

    def _variant(self, variant: Variant) -> dict[str, str]:
        keys = {"build": self.plan.build[variant.name], "evaluate": self.plan.evaluate[variant.name]}
        if variant.method == "finetune":
            keys["finetune"] = self.plan.finetune[variant.weight_bits]
        if variant.method in ("qat", "finetune"):
            sweep = self.store.get("sweep", self.plan.sweep) or {}
            best: dict[str, Any] | None = sweep.get("best", {}).get(str(variant.weight_bits))
            keys |= {"trial": best["key"]} if best is not None else {}
        return keys

    def _trials(self) -> list[TrialState]:
        found = []
        for trial, standing in zip(self.plan.trials, trial_standings(self.store, self.plan), strict=True):
            reached = standing.epochs - (standing.state == "run")
            record = trial_record(self.store, trial, reached) if reached else None
            key = None if record is None else record["key"]
            found.append(
                TrialState(trial_name(trial), trial["key"], trial["settings"], standing.state, standing.epochs, key)
            )
        return found

    def _point(self, at: At) -> PointUnits:
        memory = {name: memory_key(key, at) for name, key in self.plan.build.items()}
        return PointUnits(*at, latency_key(self.store, self.plan, at), memory, memory_step(at))

    def _ended(self) -> dict[str, Result]:
        ended = {key: result for key, result in self._earlier.items() if key not in self.results}
        for key, result in self.results.items():
            if result.status != "ok":
                ended[key] = Result(result.status, provenance_here() | result.record, result.reason)
        return ended
