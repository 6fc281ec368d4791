"""Write run.json as units end, so that after any kill the table can be written from what was finished."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from qray.errors import QrayError
from qray.graph.store import Store
from qray.graph.unit import Graph, Result
from qray.judge.index import Index, PointUnits, TrialState, read_index, write_index
from qray.measure.host import provenance_here
from qray.measure.isa import Machine
from qray.study import Study, Variant
from qray.units.evaluate import BASELINE
from qray.units.sweep import Sweep, trial_record
from qray.units.trials import trial_name

#: Of the time, for what is recorded while units run.
SHARE = 0.1
#: Kinds that a study has one unit of.
SHARED = ("train", "sweep", "costs", "sensitivity")


@dataclass
class Sparing:
    """A call that many ask for and that takes longer the more there is: one is made for all who asked meanwhile, and
    all together take a tenth of the time at most."""

    call: Callable[[], None]
    _asked: bool = False
    _not_before: float = 0.0

    def ask(self) -> None:
        """Have the call made soon."""
        self._asked = True

    def grant(self) -> None:
        """Make the call, if it was asked for and its time has come."""
        if not self._asked or time.monotonic() < self._not_before:
            return
        self._asked, begun = False, time.monotonic()
        self.call()
        self._not_before = begun + (time.monotonic() - begun) / SHARE


@dataclass
class Recorder:
    """Writes the index of one run. results: how its units ended so far, by key; the run goes on filling it."""

    store: Store
    study: Study
    graph: Graph
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
        shared = {kind: unit.key for kind in SHARED if (unit := self.graph.one(kind)) is not None}
        variants = {variant.name: self._variant(variant) for variant in self.study.variants}
        write_index(
            self.store.out,
            Index(
                self.stage, self.started, self.machine, shared, variants, self.graph.of("evaluate")[BASELINE].key,
                tuple(self._trials()), tuple(self._points()), self._ended(),
                self.study.verdict.model_dump(mode="json"),
            ),
        )  # fmt: skip

    def _variant(self, variant: Variant) -> dict[str, str]:
        keys = {kind: self.graph.of(kind)[variant.name].key for kind in ("build", "evaluate")}
        if variant.method == "finetune":
            keys["finetune"] = self.graph.of("finetune")[f"w{variant.weight_bits}"].key
        sweep = self.graph.one("sweep")
        if variant.of_sweep and sweep is not None:
            best = (self.store.record(sweep) or {}).get("best", {}).get(str(variant.weight_bits))
            keys |= {"trial": best["key"]} if best is not None else {}
        return keys

    def _trials(self) -> list[TrialState]:
        unit = self.graph.one("sweep")
        if unit is None or not isinstance(unit.task, Sweep):
            return []
        found = []
        for trial, standing in zip(unit.task.trials, unit.task.standings(self.store), strict=True):
            reached = standing.epochs - (standing.state == "run")
            record = trial_record(self.store, trial, reached) if reached else None
            key = None if record is None else record["key"]
            found.append(
                TrialState(trial_name(trial), trial["key"], trial["settings"], standing.state, standing.epochs, key)
            )
        return found

    def _points(self) -> list[PointUnits]:
        latencies, memories, servings = (self.graph.of(kind) for kind in ("measure", "memory", "serve"))
        return [
            PointUnits(
                at.threads, at.batch, self.store.key(latencies[str(at)]),
                {variant.name: memories[f"{variant.name}, {at}"].key
                 for variant in self.study.variants if variant.device == at.device}, at.device,
                self.store.key(servings[str(at)]) if servings else None,
            )
            for at in self.study.points()
        ]  # fmt: skip

    def _ended(self) -> dict[str, Result]:
        ended = {key: result for key, result in self._earlier.items() if key not in self.results}
        for key, result in self.results.items():
            if result.status != "ok":
                ended[key] = Result(result.status, provenance_here() | result.record, result.reason)
        return ended
