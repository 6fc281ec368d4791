"""The commands that make runs and tables, look at this machine, and use what was built; typer calls these functions."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qray.atomic import remove_unfinished
from qray.errors import QrayError, UsageError
from qray.escape import command, visible
from qray.options import (
    CpusOption,
    DataOption,
    FreshOption,
    JsonOption,
    ModelOption,
    OutOption,
    SetOption,
    StudyOption,
    folder_here,
    proof_here,
)

if TYPE_CHECKING:
    from rich.console import Console

    from qray.graph.store import Store
    from qray.study import Study

STAGES = {
    "all": "Train, quantize, evaluate, measure, and write one table: the main job.",
    "train": "Train the FP32 model.",
    "build": "Build every variant.",
    "sweep": "Run the QAT sweep.",
    "evaluate": "Evaluate every variant on TEST.",
    "measure": "Measure latency and memory of every variant.",
    "sensitivity": "Quantize each layer alone, and all but it: where the error comes from.",
}


def _check_ray_address(out: Path) -> None:
    """Say what is wrong with RAY_ADDRESS before minutes go into a data set. Where OUT holds finished units, which may
    be all that is wanted, a cluster that is gone is no fault yet."""
    from qray.ray_address import check_head, driver_address, prepare_environment
    from qray.ray_token import use_token_if_asked

    address = driver_address()
    if address is not None and not any((out / "units").glob("[!.]*-*.json")):
        check_head(address)
    use_token_if_asked()
    prepare_environment()


def run_stage(
    context: typer.Context,
    name: StudyOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    fresh: FreshOption = False,
    as_json: JsonOption = False,
    num_cpus: CpusOption = None,
) -> None:
    """Run the stage that the command is called by, with what it needs of those before, and say what came of it."""
    from qray.graph.store import COPIED, Store, is_needed
    from qray.storage.out import clear, held, make_writable, mirror_of, working_copy
    from qray.storage.place import place_of
    from qray.study_files import load_study
    from qray.terminal import open_console
    from qray.units.data_set import check_place

    stage = str(context.info_name)
    began = time.monotonic()
    study = load_study(name, settings or [], None if data is None else place_of(data, "--data"), model)
    # Known at once; the checks of the data set itself come seconds later, with PyTorch and Ray loaded.
    check_place(study.data)
    place = place_of(out or f"runs/{study.name}", "--out")
    folder = place.resolve() if isinstance(place, Path) else working_copy(place, COPIED)
    make_writable(folder)
    # Lines about progress go to stderr, so that stdout holds the table or the JSON alone.
    progress = open_console(stderr=True, soft_wrap=True)
    with held(folder, progress.print):
        remove_unfinished(folder)
        mirror = mirror_of(folder)
        if mirror is not None:
            mirror.look()
        if fresh:
            clear(folder, mirror)
        if mirror is not None:
            mirror.bring(is_needed)
        progress.print(f"qray run {stage}: study {study.name}, output in {folder}")
        if mirror is not None:
            progress.print(f"its copy on this machine is {folder}{os.sep}")
        _check_ray_address(folder)
        _run(stage, study, Store(folder, mirror), progress, began, as_json, num_cpus)


def _run(
    stage: str, study: Study, store: Store, progress: Console, began: float, as_json: bool, num_cpus: int | None
) -> None:
    """Run a stage into an OUT that is held."""
    from qray.judge.row import from_table
    from qray.judge.run import read_run
    from qray.judge.timing import write_phases
    from qray.questions import report_finished_run
    from qray.units.run import run_study
    from qray.words.show import print_results, read_results, results_json
    from qray.words.show_run import print_sensitivity, print_times
    from qray.words.terminal import results_console

    started, folder = time.time(), store.out
    phases = {"load qray": time.monotonic() - began}
    result = run_study(study, store, stage, progress, num_cpus)
    total = time.monotonic() - began
    # A run that found everything done leaves the record of the run that did it.
    if "start Ray" in result.phases:
        write_phases(folder, phases | result.phases, total, started)
    console, table, left = results_console(), read_results(folder), read_run(folder)
    if as_json:
        print(results_json(table))
    elif stage in ("all", "evaluate", "measure"):
        print_results(table, console)
    if not as_json and stage in ("all", "sensitivity"):
        print_sensitivity(left.shared("sensitivity"), console)
    print_times(left.shared("costs"), left.timing, progress if as_json else console)
    progress.print(f"{total:.0f} s in all")
    _say_where(folder, progress)
    unreported = None
    if stage == "all" and result.evidence is not None:
        unreported = report_finished_run(replace(result.evidence, timing=left.timing), progress)
        if unreported is None:
            store.set_shown()
    elif stage == "all":
        progress.print(f"Report: {folder / 'report.html'}")
    failed = sorted({r.reason or "" for r in result.results.values() if r.status == "failed"})
    rows = from_table(table)
    if stage == "all" and not any(row.stage == "variant" and row.status == "ok" for row in rows):
        first = f"no variant came out of the run; the first: {rows[0].variant}: {rows[0].reason}"
        raise QrayError(f"{first}; {unreported}" if unreported else first)
    if failed and stage != "all":
        raise QrayError(f"{len(failed)} units failed: {failed[0]}")
    if unreported:
        # Not silently 0: what publishes report.html after this command would publish none, or an earlier run's.
        raise QrayError(f"the run is finished and its table written, but {unreported}")


def write_table_anew(
    folder: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Output folder of a run, or its URI.", parser=proof_here)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The same.", parser=proof_here)] = None,
    measured: Annotated[
        list[Path] | None, typer.Option(help="A measured.json that came back from a device with a kit (`qray kit`).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write results.parquet anew from what OUT holds, by the study that it holds; needs no data set. With --measured it
    takes in what a device measured, whose rows are there from then on."""
    # The margin is that study's: one given now would not be declared beforehand (`qray pick --margin` says so).
    named = folder or out
    if named is None or (folder is not None and out is not None and folder != out):
        raise UsageError("qray run table OUT: name one folder, the output of a run")
    from qray.judge.judge import read_evidence
    from qray.judge.table import write_table
    from qray.storage.out import held, make_writable
    from qray.terminal import open_console
    from qray.words.show import print_results, results_json
    from qray.words.show_run import print_times
    from qray.words.terminal import results_console

    make_writable(named)
    with held(named):
        if measured:
            from qray.kits.measured import take

            take(named, measured)
        evidence = read_evidence(named)
        table = write_table(evidence)
    if as_json:
        print(results_json(table))
    else:
        console = results_console()
        print_results(table, console)
        print_times(evidence.costs, evidence.timing, console)
    _say_where(named, open_console(stderr=True, soft_wrap=True))


def _say_where(out: Path, console: Console) -> None:
    console.print(f"Table: {out / 'results.parquet'}; print it again with `{command('qray', 'show', out)}`")


def make_data(
    folder: Annotated[str, typer.Argument(help="Where to write the data set.")],
    train: Annotated[int, typer.Option(min=0)] = 1000,
    val: Annotated[int, typer.Option(min=0)] = 150,
    test: Annotated[int, typer.Option(min=0)] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """Make the synthetic apical four-chamber data set, in the EchoNet-Dynamic layout."""
    from qray.storage.place import place_of
    from qray.synthetic.generate import synthesize

    root = place_of(folder, "DIR")
    if not isinstance(root, Path):
        raise UsageError(f"{root}: a data set is written into a folder; copy it there with your store's own client")
    synthesize(root, {"TRAIN": train, "VAL": val, "TEST": test}, seed, workers)
    typer.echo(f"Data set: {folder}")


def check_data(
    folder: Annotated[str, typer.Argument(help="The data set's folder, or its URI.")],
    study: StudyOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a data set, listing each rejected clip and why."""
    from qray.data.manifest import check_manifest, read_manifest
    from qray.data.splits import SPLITS
    from qray.storage.place import place_of
    from qray.study_files import load_study

    read_as = load_study(study, settings or []).data
    manifest = read_manifest(place_of(folder, "DIR"), read_as)
    if as_json:
        counts = {split: len(manifest.split(split)) for split in SPLITS}
        rejected = manifest.rejected.to_dict("records")
        facts = {"clips": counts, "digest": manifest.digest, "rejected": rejected, "warnings": manifest.warnings}
        print(json.dumps(facts, indent=1))
    else:
        for row in manifest.rejected.itertuples():
            print(visible(f"line {row.row} {row.clip!r}: {row.reason}"))
        for warning in manifest.warnings:
            print(visible(f"warning: {warning}"))
        clips = manifest.clips
        for split in SPLITS:
            target = manifest.split(split)["target"]
            # A single clip has no spread.
            spread = f" +- {target.std():.1f}" if len(target) > 1 else ""
            mean = f", {read_as.target_column} {target.mean():.1f}{spread}" if len(target) else ""
            print(visible(f"{split}: {len(target)} {'clip' if len(target) == 1 else 'clips'}{mean}"))
        sizes = ", ".join(sorted({f"{w}x{h}" for w, h in zip(clips["width"], clips["height"], strict=True)})[:5])
        print(f"frames {clips['n_frames'].min()} to {clips['n_frames'].max()}; sizes {sizes}; digest {manifest.digest}")
    check_manifest(manifest, read_as)


def predict_files(
    artifact: Annotated[
        Path, typer.Argument(help="A folder such as OUT/artifacts/KEY, or its URI.", parser=folder_here)
    ],
    videos: Annotated[list[str], typer.Argument(help="Video files, or their URIs.")],
    threads: Annotated[int, typer.Option(min=1)] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: the one that it was built for.")] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run an artifact of native code (AOTInductor), whoever built it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Predict videos with an artifact that was built."""
    from qray.predict import predict_videos

    rows, failed = [], 0
    for video, value, reason in predict_videos(artifact, videos, threads, allow_code, device):
        rows.append({"video": str(video), "prediction": value, "reason": reason})
        failed += value is None
        if not as_json:
            print(visible(f"{video}\t{value:.2f}" if value is not None else f"{video}\t{reason}"))
    if as_json:
        print(json.dumps(rows, indent=1))
    if failed:
        raise QrayError(f"{failed} of {len(rows)} videos could not be predicted")


def run_doctor(as_json: JsonOption = False) -> None:
    """Say what this machine can do: engines, CPU, GPU, video, Ray."""
    from qray.doctor import diagnose, print_findings
    from qray.ray_address import prepare_environment
    from qray.ray_token import use_token_if_asked
    from qray.terminal import open_console

    # What is wrong with the address is the Ray check's to say.
    with contextlib.suppress(QrayError):
        use_token_if_asked()
        prepare_environment()
    findings = diagnose()
    if as_json:
        print(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        print_findings(findings, open_console())
    broken = [finding.topic for finding in findings if finding.state == "broken"]
    if broken:
        raise QrayError(f"broken here: {', '.join(broken)}")
