"""What the commands do, behind the parsing in cli.py."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from qray.errors import QrayError, UsageError
from qray.escape import command, visible
from qray.ray_address import check_head, driver_address
from qray.ray_token import use_token_if_asked
from qray.study_files import load_study
from qray.terminal import open_console

if TYPE_CHECKING:
    from qray.judge.timing import Timing

#: Folders and files of OUT that --fresh removes; anything else in there is not ours.
OUT_CONTENTS = ("units", "artifacts", "predictions", "checkpoints", "sweep", "study.yaml", "results.parquet",
                "rejected.parquet", "run.json", "report.html", "report.md", "report",
                "cards")  # fmt: skip


def _clear(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / "study.yaml").is_file():
        raise UsageError(f"--fresh: {out} holds no study.yaml, so it is not the output of a run; name another --out")
    for name in OUT_CONTENTS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _make_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Trying is the only proof: a read-only file system, a quota and an owner all look different.
        with tempfile.TemporaryFile(dir=out):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"--out: {out} is not a folder, or lies under a file; name another --out") from None
    except OSError as error:
        raise UsageError(f"--out: {out} cannot be written to ({error.strerror}); name another --out") from None


def _check_ray_address(out: Path) -> None:
    """Say what is wrong with RAY_ADDRESS before minutes go into a data set. Where OUT holds finished units, which may
    be all that is wanted, a cluster that is gone is no fault yet."""
    address = driver_address()
    if address is not None and not any((out / "units").glob("*-*.json")):
        check_head(address)
    use_token_if_asked()


def run_stage(
    stage: str, study_name: str, data: Path | None, out: Path | None, settings: Sequence[str], fresh: bool,
    as_json: bool, num_cpus: int | None,
) -> None:  # fmt: skip
    """`qray run STAGE`."""
    began, started = time.monotonic(), time.time()
    # JSON is YAML, and quotes whatever a path may contain.
    located = [] if data is None else [f"data.dir={json.dumps(str(data.resolve()), ensure_ascii=False)}"]
    given = [*settings, *located]
    study = load_study(study_name, given)
    if study.data.dir is not None and not Path(study.data.dir).expanduser().is_dir():
        # Known at once; the checks of the data set itself come seconds later, with PyTorch and Ray loaded.
        raise QrayError(f"{study.data.dir}: no such folder; name the data set's folder with --data")
    folder = (out or Path("runs") / study.name).resolve()
    _make_writable(folder)
    if fresh:
        _clear(folder)
    # Lines about progress go to stderr, so that stdout holds the table or the JSON alone.
    progress = open_console(stderr=True, soft_wrap=True)
    progress.print(f"qray run {stage}: study {study.name}, output in {folder}", markup=False, highlight=False)

    _check_ray_address(folder)
    from qray.judge.timing import read_timing, write_phases
    from qray.orchestrate.run import run_study
    from qray.orchestrate.store import Store
    from qray.reporting import report_finished_run
    from qray.words.show import print_results, results_console, to_json

    phases = {"load qray": time.monotonic() - began}
    result = run_study(study, Store(folder), stage, progress, num_cpus)
    total = time.monotonic() - began
    # A run that found everything done leaves the record of the run that did it.
    if "start Ray" in result.phases:
        write_phases(folder, phases | result.phases, total, started)
    console = results_console()
    if as_json:
        print(to_json(result.table))
    elif stage in ("all", "evaluate", "measure"):
        print_results(result.table, console)
    evidence = replace(result.evidence, timing=read_timing(folder))
    if not as_json and stage in ("all", "sensitivity"):
        _print_sensitivity(evidence.sensitivity, console)
    _print_times(evidence.costs, evidence.timing, progress if as_json else console)
    progress.print(f"{total:.0f} s in all", highlight=False)
    progress.print(f"Table: {folder / 'results.parquet'}; print it again with "
                   f"`{command('qray', 'show', folder)}`", markup=False, highlight=False)  # fmt: skip
    unreported = report_finished_run(evidence, progress) if stage == "all" else None
    failed = sorted({r.reason or "" for r in result.results.values() if r.status == "failed"})
    rows = evidence.rows
    if stage == "all" and not any(row.stage == "variant" and row.status == "ok" for row in rows):
        first = f"no variant came out of the run; the first: {rows[0].variant}: {rows[0].reason}"
        raise QrayError(f"{first}; {unreported}" if unreported else first)
    if failed and stage != "all":
        raise QrayError(f"{len(failed)} units failed: {failed[0]}")
    if unreported:
        # Not silently 0: what publishes report.html after this command would publish none, or an earlier run's.
        raise QrayError(f"the run is finished and its table written, but {unreported}")


def write_table_anew(folder: Path | None, out: Path | None, as_json: bool) -> None:
    """`qray run table`: a function of OUT alone. The margin is its study's: one given now would not be declared
    beforehand (`qray pick --margin` gives one, and says so)."""
    named = folder or out
    if named is None or (folder is not None and out is not None and folder != out):
        raise UsageError("qray run table OUT: name one folder, the output of a run")
    from qray.judge.judge import read_evidence
    from qray.judge.table import write_table
    from qray.words.show import print_results, results_console, to_json

    evidence = read_evidence(named)
    _make_writable(named)
    table = write_table(evidence)
    if as_json:
        print(to_json(table))
    else:
        console = results_console()
        print_results(table, console)
        _print_times(evidence.costs, evidence.timing, console)
    open_console(stderr=True, soft_wrap=True).print(
        f"Table: {named / 'results.parquet'}; print it again with `{command('qray', 'show', named)}`",
        markup=False, highlight=False,
    )  # fmt: skip


def _print_times(costs: Mapping[str, Any] | None, timing: Timing | None, console: Console) -> None:
    """What a clip costs, and where the time of the run went."""
    from qray.judge.costs import costs_of
    from qray.judge.timing import render_timing

    found = costs_of(costs) if costs is not None else None
    if found is not None:
        console.print(found.sentence, highlight=False)
    if timing is not None:
        console.print()
        console.print(render_timing(timing))


def _print_sensitivity(record: Mapping[str, Any] | None, console: Console) -> None:
    from qray.judge.sensitivity import render_sensitivity

    if record is not None:
        console.print()
        console.print(render_sensitivity(record))


def check_data(folder: Path, study_name: str, settings: Sequence[str], as_json: bool) -> None:
    """`qray data check`."""
    from qray.data.manifest import check_manifest, read_manifest
    from qray.data.splits import SPLITS

    study = load_study(study_name, settings)
    manifest = read_manifest(folder, study.data)
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
            mean = f", {study.data.target_column} {target.mean():.1f}{spread}" if len(target) else ""
            print(visible(f"{split}: {len(target)} {'clip' if len(target) == 1 else 'clips'}{mean}"))
        sizes = ", ".join(sorted({f"{w}x{h}" for w, h in zip(clips["width"], clips["height"], strict=True)})[:5])
        print(f"frames {clips['n_frames'].min()} to {clips['n_frames'].max()}; sizes {sizes}; digest {manifest.digest}")
    check_manifest(manifest, study.data)


def show_results(out: Path, as_json: bool) -> None:
    """`qray show`."""
    from qray.judge.index import FILE
    from qray.judge.run import read_run
    from qray.words.show import print_results, read_results, results_console, to_json

    table = read_results(out)
    if as_json:
        print(to_json(table))
    else:
        console = results_console()
        print_results(table, console)
        # A table that was copied without its run is shown all the same.
        if (out / FILE).is_file():
            run = read_run(out)
            _print_sensitivity(run.shared("sensitivity"), console)
            _print_times(run.shared("costs"), run.timing, console)


def show_seeds(outs: Sequence[Path], as_json: bool) -> None:
    """`qray seeds`."""
    from qray.answers.seeds import over_seeds
    from qray.judge.judge import read_evidence
    from qray.words.show import results_console
    from qray.words.show_seeds import print_seeds, seeds_to_json

    found = over_seeds([read_evidence(out) for out in outs])
    if as_json:
        print(seeds_to_json(found))
    else:
        print_seeds(found, results_console())


def predict_files(artifact: Path, videos: Sequence[Path], threads: int, as_json: bool) -> None:
    """`qray predict`."""
    from qray.predict import predict_videos

    rows, failed = [], 0
    for video, value, reason in predict_videos(artifact, videos, threads):
        rows.append({"video": str(video), "prediction": value, "reason": reason})
        failed += value is None
        if not as_json:
            print(visible(f"{video}\t{value:.2f}" if value is not None else f"{video}\t{reason}"))
    if as_json:
        print(json.dumps(rows, indent=1))
    if failed:
        raise QrayError(f"{failed} of {len(rows)} videos could not be predicted")


def write_model_cards(out: Path, names: Sequence[str]) -> None:
    """`qray card`."""
    from qray.judge.judge import read_evidence
    from qray.words.card import write_cards

    for path in write_cards(read_evidence(out), names):
        print(visible(str(path)))


def track_run(out: Path, tracking_uri: str | None, experiment: str | None) -> None:
    """`qray track`."""
    from qray.judge.judge import read_evidence
    from qray.trackers.mlflow import track

    done = track(read_evidence(out), tracking_uri, experiment)
    what = "updated" if done.updated else "made"
    print(f"MLflow {done.uri}, experiment {done.experiment}: run {done.run_id} {what}, {done.rows} nested runs")


def run_doctor(as_json: bool) -> None:
    """`qray doctor`."""
    # What is wrong with the address is the Ray check's to say.
    with contextlib.suppress(QrayError):
        use_token_if_asked()
    from qray.doctor import diagnose, print_findings

    findings = diagnose()
    if as_json:
        print(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        print_findings(findings, open_console())
    broken = [finding.topic for finding in findings if finding.state == "broken"]
    if broken:
        raise QrayError(f"broken here: {', '.join(broken)}")


def submit_job(
    address: str, wait: bool, study: str, data: Path | None, out: Path | None, settings: Sequence[str],
    more: Sequence[str],
) -> None:  # fmt: skip
    """`qray submit`."""
    from qray.submit import Request, submit

    status = submit(address, Request(study, data, out, tuple(settings), tuple(more)), wait)
    if wait and status != "SUCCEEDED":
        raise QrayError(f"the job ended as {status}")
    sys.stdout.flush()
