"""Plan, train and evaluate, measure, table: the main job."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console

from qray.atomic import write_text
from qray.data.manifest import Manifest
from qray.data.splits import SPLITS
from qray.errors import QrayError, UsageError
from qray.graph.missing import impossible, lacking
from qray.graph.runner import Runner
from qray.graph.store import Store
from qray.graph.unit import Result
from qray.judge.timing import MEASURING_PHASE, PARALLEL_PHASE
from qray.measure.isa import Machine, this_machine
from qray.ray_address import driver_address
from qray.ray_token import dashboard_words
from qray.study import Study
from qray.study_files import dump_study
from qray.units.context import RunContext
from qray.units.data_set import ensure_data, load_manifest
from qray.units.evaluate import Evaluate
from qray.units.plan import ALONE, study_units, units_of_stage
from qray.units.recorder import Recorder, Sparing
from qray.units.rows import Rows

if TYPE_CHECKING:
    from qray.judge.evidence import Evidence

#: Rejected clips shown on screen; rejected.parquet has them all.
SHOWN_REJECTIONS = 20


@dataclass
class RunResult:
    """What a run left: what it proves (None where table and report say so already), how each unit ended, and the
    seconds of its phases, in order."""

    evidence: Evidence | None
    results: dict[str, Result]
    phases: dict[str, float]


@dataclass
class _Phases:
    """Where the time goes: each phase lasts from the end of the one before."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def end(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = now - self._last
        self._last = now


def run_study(study: Study, store: Store, stage: str, console: Console, num_cpus: int | None = None) -> RunResult:
    """Run a stage of a study and what it needs. The same call again does only what is missing.

    Raises:
        QrayError: the data set is unusable, Ray cannot be had, or FP32 training failed.
        UsageError: the study does not have what the stage is about.
    """
    section = {"sensitivity": "sensitivity.clips=64", "sweep": "sweep.trials=4"}.get(stage)
    if section is not None and getattr(study, stage) is None:
        raise UsageError(
            f"study {study.name} has no `{stage}:` section, so there is nothing to do; add one, or --set {section}"
        )
    phases = _Phases()
    write_text(store.out / "study.yaml", dump_study(study))
    root = ensure_data(study.data)
    phases.end("make the data set")
    manifest = load_manifest(store, root, study.data)
    phases.end("check the videos")
    _say_manifest(manifest, console)
    machine = _machine(console)
    graph = study_units(study, manifest, machine)
    given_up = impossible(graph, store)
    results = {store.key(unit): result for unit, result in given_up.items()}
    recorder = Recorder(store, study, graph, stage, time.time(), machine, results)
    recorder.write()
    try:
        if lacking(graph, units_of_stage(graph, stage), store, given_up):
            # The workers of a cluster may have what this machine lacks.
            results.clear()
            _run_on_ray(recorder, manifest, console, phases, num_cpus)
    finally:
        # However it ended: why a row is empty is known now, and only here.
        recorder.write()
    if store.is_shown():
        return RunResult(None, results, phases.seconds)
    from qray.judge.judge import read_evidence
    from qray.judge.table import write_table

    evidence = read_evidence(store.out)
    write_table(evidence)
    phases.end("write the table")
    return RunResult(evidence, results, phases.seconds)


def _machine(console: Console) -> Machine:
    """What the run is for: the least node of the cluster that RAY_ADDRESS names, or this machine."""
    if driver_address() is None:
        return this_machine()
    from qray.graph.placement import placement
    from qray.graph.session import ray_session

    with ray_session():
        return placement(lambda line: console.print(line, markup=False, highlight=False)).machine()


def _run_on_ray(
    recorder: Recorder, manifest: Manifest, console: Console, phases: _Phases, num_cpus: int | None
) -> None:
    """Run what is missing; how each unit ended is recorded, also when the run ends with an error."""
    # Importing Ray takes seconds, and where everything is done it is not needed.
    from qray.graph.ray_backend import RayBackend
    from qray.graph.session import ray_session

    store, graph, study = recorder.store, recorder.graph, recorder.study
    with ray_session(num_cpus) as dashboard:
        phases.end("start Ray")
        console.print(dashboard_words(dashboard), markup=False, highlight=False)
        backend = RayBackend()

        def record() -> None:
            recorder.write()
            # A line is not worth a run: what is wrong with OUT, the table will tell.
            with contextlib.suppress(QrayError):
                rows.say_new()

        recording = Sparing(record)
        runner = Runner(store, backend, console, recorder.results, recording.ask, recording.grant)
        rows = Rows(store.out, runner.say)
        run = runner.context = RunContext(study, manifest, store, backend, runner)
        wanted = units_of_stage(graph, recorder.stage)
        together = lacking(graph, [unit for unit in wanted if unit.kind not in ALONE], store)
        later = [unit for unit in lacking(graph, wanted, store) if unit.kind in ALONE]
        for unit in together:
            if reason := backend.slots.lacking(unit.task.resources):
                raise UsageError(f"training.workers: {reason}; lower it, or run where there are more")
        if any(unit.kind in ("train", "sweep", "predict") for unit in together):
            run.prepare_split("VAL")
        if any(isinstance(unit.task, Evaluate) and unit.task.split == "TEST" for unit in together):
            run.prepare_split("TEST")
        runner.run(together, later)
        record()
        phases.end(PARALLEL_PHASE)
        (train,) = graph.of("train").values()
        ended = recorder.results.get(train.key)
        if ended is not None and ended.status != "ok":
            raise QrayError(f"training failed: {ended.reason}")
        if alone := lacking(graph, [unit for unit in wanted if unit.kind in ALONE], store):
            runner.run(alone)
            record()
            phases.end(MEASURING_PHASE)


def _say_manifest(manifest: Manifest, console: Console) -> None:
    counts = ", ".join(f"{len(manifest.split(name))} {name}" for name in SPLITS)
    console.print(f"{len(manifest.clips)} clips ({counts}), {len(manifest.rejected)} rejected", highlight=False)
    for row in manifest.rejected.head(SHOWN_REJECTIONS).itertuples():
        console.print(f"  line {row.row} {row.clip!r}: {row.reason}", style="yellow", markup=False, highlight=False)
    if len(manifest.rejected) > SHOWN_REJECTIONS:
        console.print(f"  and {len(manifest.rejected) - SHOWN_REJECTIONS} more in rejected.parquet", style="yellow")
    for warning in manifest.warnings[:SHOWN_REJECTIONS]:
        console.print(f"  warning: {warning}", style="yellow", markup=False, highlight=False)
    if len(manifest.warnings) > SHOWN_REJECTIONS:
        console.print(
            f"  and {len(manifest.warnings) - SHOWN_REJECTIONS} more; `qray data check` has them all", style="yellow"
        )
