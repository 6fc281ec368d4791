"""Plan, train and evaluate, measure, table: the main job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
from rich.console import Console

from qray.data.manifest import Manifest
from qray.data.splits import SPLITS
from qray.errors import QrayError, UsageError
from qray.judge.evidence import Evidence
from qray.judge.index import Result
from qray.judge.judge import read_evidence
from qray.judge.table import write_table
from qray.measure.isa import this_machine
from qray.orchestrate import measuring
from qray.orchestrate.context import RunContext
from qray.orchestrate.costs import costs_key
from qray.orchestrate.data_set import ensure_data, load_manifest
from qray.orchestrate.placement import cluster_machine, placement
from qray.orchestrate.plan import Plan, make_plan
from qray.orchestrate.run_record import Recorder
from qray.orchestrate.sensitivity import add_sensitivity_steps, sensitivity_key
from qray.orchestrate.session import cluster_slots, ray_session
from qray.orchestrate.steps import Runner
from qray.orchestrate.store import Store
from qray.orchestrate.sweep_steps import sweep_steps
from qray.orchestrate.telemetry import start_board
from qray.orchestrate.training_steps import finetune_step, train_step
from qray.orchestrate.variant_steps import add_measure_steps, build_step, evaluate_step, save_baseline
from qray.ray_token import dashboard_words
from qray.study import Study
from qray.study_files import dump_study

#: Rejected clips shown on screen; rejected.parquet has them all.
SHOWN_REJECTIONS = 20


@dataclass
class RunResult:
    """What a run left: what it proves, its table, how each unit ended, and the seconds of its phases, in order."""

    evidence: Evidence
    table: pa.Table
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
    if stage == "sensitivity" and study.sensitivity is None:
        raise UsageError(
            f"study {study.name} has no `sensitivity:` section, so there are no layers to measure; add one, or "
            "--set sensitivity.clips=64"
        )
    phases = _Phases()
    store.out.mkdir(parents=True, exist_ok=True)
    store.write_study(dump_study(study))
    root = ensure_data(study.data)
    phases.end("make the data set")
    manifest = load_manifest(store, root, study.data)
    phases.end("check the videos")
    _say_manifest(manifest, console)
    machine = cluster_machine() or this_machine()
    plan = make_plan(study, manifest, machine)
    recorder = Recorder(store, plan, stage, time.time(), machine, _impossible_here(store, plan))
    recorder.write()
    try:
        if not all(key in recorder.results or store.get(kind, key) for kind, key in wanted_units(store, plan, stage)):
            # The workers of a cluster may have what this machine lacks.
            recorder.results.clear()
            _run_on_ray(recorder, console, phases, num_cpus)
    finally:
        # However it ended: why a row is empty is known now, and only here.
        recorder.write()
    evidence = read_evidence(store.out)
    table = write_table(evidence)
    phases.end("write the table")
    return RunResult(evidence, table, recorder.results, phases.seconds)


def _run_on_ray(recorder: Recorder, console: Console, phases: _Phases, num_cpus: int | None) -> None:
    """Run what is missing; how each unit ended is recorded, also when the run ends with an error."""
    store, plan, stage = recorder.store, recorder.plan, recorder.stage
    with ray_session(num_cpus) as dashboard:
        phases.end("start Ray")
        console.print(dashboard_words(dashboard), markup=False, highlight=False)
        board = start_board()
        run = RunContext(
            plan.study,
            store,
            plan,
            Runner(store, console, board, recorder.results, recorder.write),
            cluster_slots(),
            placement(),
            board,
        )
        add_steps(run, stage)
        pending = {kind for kind, key in wanted_units(store, plan, stage) if store.get(kind, key) is None}
        if pending & {"train", "sweep"}:
            run.prepare_split("VAL")
        if "evaluate" in pending:
            run.prepare_split("TEST")
        run.runner.run()
        phases.end("train, build and evaluate")
        trained = run.runner.results[plan.train]
        if trained.status != "ok":
            raise QrayError(f"training failed: {trained.reason}")
        save_baseline(run)
        if stage in ("measure", "all") and measuring.built_keys(store, plan):
            add_measure_steps(run)
            run.runner.run()
            phases.end("measure latency and memory")


def add_steps(run: RunContext, stage: str) -> None:
    """Everything up to `stage`, in the order in which slots are given."""
    runner, variants = run.runner, run.study.variants
    runner.add(train_step(run))
    trained = [v for v in variants if v.method in ("qat", "finetune")]
    if stage == "sensitivity":
        return add_sensitivity_steps(run)
    if stage == "sweep" or (stage != "train" and trained):
        for step in sweep_steps(run):
            runner.add(step)
    if stage in ("train", "sweep"):
        return
    for bits in run.plan.finetune:
        runner.add(finetune_step(run, bits))
    for variant in variants:
        if stage in ("evaluate", "all"):
            runner.add(evaluate_step(run, variant))
        runner.add(build_step(run, variant))
    if stage == "all" and run.study.sensitivity is not None:
        add_sensitivity_steps(run)


def wanted_units(store: Store, plan: Plan, stage: str) -> Iterator[tuple[str, str]]:
    """(kind, key) of every unit that a stage leaves behind."""
    yield "train", plan.train
    if stage in ("sensitivity", "all") and (key := sensitivity_key(plan)):
        yield "sensitivity", key
    trained = any(v.method in ("qat", "finetune") for v in plan.study.variants)
    if stage == "sweep" or (stage not in ("train", "sensitivity") and trained):
        yield "sweep", plan.sweep
    if stage in ("build", "evaluate", "measure", "all"):
        yield from (("build", key) for key in plan.build.values())
    if stage in ("evaluate", "all"):
        yield from (("evaluate", key) for key in plan.evaluate.values())
    if stage in ("measure", "all"):
        yield "costs", costs_key(plan)
        for at in measuring.points(plan.study.measure):
            yield "measure", measuring.latency_key(store, plan, at)
            yield from (("memory", measuring.memory_key(key, at)) for key in measuring.built_keys(store, plan))


def _impossible_here(store: Store, plan: Plan) -> dict[str, Result]:
    """Variants that were not built and whose engine this machine lacks: no reason to start Ray once more."""
    from qray.variants.registry import missing_requirement

    results = {}
    for variant in plan.study.variants:
        key = plan.build[variant.name]
        reason = missing_requirement(variant, plan.isa) if store.get("build", key) is None else None
        if reason is not None:
            results[key] = results[plan.evaluate[variant.name]] = Result("skipped", reason=reason)
    return results


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
