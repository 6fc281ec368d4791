"""What is asked of finished runs, as the command line has it; typer calls these functions."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qray.errors import NothingQualifies, QrayError, Regression, UsageError
from qray.escape import command, visible
from qray.options import JsonOption, OutArgument, ShownOut, TrackedOut, WrittenOut, proof_here

if TYPE_CHECKING:
    from rich.console import Console

    from qray.judge.evidence import Evidence
    from qray.storage.place import Place
    from qray.words.document import Document


def show_results(out: ShownOut, as_json: JsonOption = False) -> None:
    """Print the table of a run."""
    from qray.judge.index import FILE
    from qray.judge.run import read_run
    from qray.words.show import print_results, read_results, results_json
    from qray.words.show_run import print_sensitivity, print_times
    from qray.words.terminal import results_console

    table = read_results(out)
    if as_json:
        print(results_json(table))
        return
    console = results_console()
    print_results(table, console)
    # A table that was copied without its run is shown all the same.
    if (out / FILE).is_file():
        run = read_run(out)
        print_sensitivity(run.shared("sensitivity"), console)
        print_times(run.shared("costs"), run.timing, console)


def print_columns(as_json: JsonOption = False) -> None:
    """Say what each column of results.parquet means, and in which unit."""
    from qray.judge.row import COLUMNS
    from qray.words.show import legend
    from qray.words.terminal import results_console, table_of, to_json

    if as_json:
        print(to_json({name: {"meaning": c.meaning, "unit": c.unit} for name, c in COLUMNS.items()}))
    else:
        results_console().print(table_of(legend(), folding={2}))


def report_run(
    out: WrittenOut,
    data: Annotated[str | None, typer.Option(help="Data set folder or URI, for pictures of clips.")] = None,
) -> None:
    """Write what a run proves, for people: OUT/report.html, report.md and report/*.png."""
    from qray.judge.judge import read_evidence
    from qray.storage.out import held
    from qray.storage.place import place_of

    place = None if data is None else place_of(data, "--data")
    if isinstance(place, Path) and not place.is_dir():
        raise QrayError(f"{data}: no such folder; --data names the data set's folder")
    evidence = read_evidence(out)
    with held(out):
        document, page = _write_report(evidence, place)
    print(visible(f"{document.headline.title}. {document.headline.sentences[0]}\nReport: {page}"))


def _write_report(evidence: Evidence, data: Path | Place | None) -> tuple[Document, Path]:
    """The report and its page; without `data` the pictures come from the study's own data set."""
    from qray.report.page import write_document
    from qray.report.sections import compose
    from qray.units.data_set import data_folder

    document = compose(evidence, data or data_folder(evidence.study.data))
    return document, write_document(document, evidence.out)


def report_finished_run(evidence: Evidence, console: Console) -> str | None:
    """Write the report at the end of a run; whatever goes wrong is returned as a sentence, since the run is done."""
    try:
        _, page = _write_report(evidence, None)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        return f"the report was not written ({why}); `{command('qray', 'report', evidence.out)}` tries again"
    console.print(f"Report: {page}")
    return None


def pick_variant(
    out: OutArgument,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Most milliseconds per call (median, upper end).")
    ] = None,
    max_size_mb: Annotated[float | None, typer.Option(help="Most megabytes of the artifact as shipped.")] = None,
    max_rss_mb: Annotated[float | None, typer.Option(help="Most megabytes of peak memory.")] = None,
    margin: Annotated[float | None, typer.Option(help="Another margin than the study declared.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Measured thread count; default: the first.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Measured batch size; default: the first.")] = None,
    device: Annotated[str | None, typer.Option(help="Measured device; default: the first.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Name the variant to ship, and why; exit code 3 if none qualifies.

    Of the variants that are non-inferior and meet the bounds it is the fastest whose interval separates; ties go to
    the smallest, then to the lowest MAE.
    """
    given = {"max-latency-ms": max_latency_ms, "max-size-mb": max_size_mb, "max-rss-mb": max_rss_mb, "margin": margin}
    for name, value in given.items():
        _check(f"--{name}", value)
    from qray.answers.bounds import Bounds
    from qray.answers.pick import choose
    from qray.judge.judge import read_evidence
    from qray.words.show_answers import choice_json, print_choice
    from qray.words.terminal import results_console

    evidence = read_evidence(out)
    choice = choose(evidence, Bounds(max_latency_ms, max_size_mb, max_rss_mb, margin), threads, batch, device)
    if as_json:
        print(choice_json(choice))
    else:
        print_choice(choice, evidence.reference.name, results_console())
    if choice.picked is None:
        raise NothingQualifies(choice.why)


def make_kit_of(
    out: TrackedOut,
    variants: Annotated[
        list[str] | None, typer.Argument(metavar="[VARIANT]...", help="Default: all that can be.")
    ] = None,
    to: Annotated[Path, typer.Option(help="The folder to write; it must not be there yet.")] = Path("kit"),
    clips: Annotated[int | None, typer.Option(min=1, help="VAL clips; default: the study's parity.clips.")] = None,
    data: Annotated[str | None, typer.Option(help="The data set's folder or URI; default: the study's.")] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(help="Of variants for a CPU or for an NVIDIA GPU; default: as the first that is named, else cpu."),
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Carry artifacts of native code (QNNPACK), whoever built them.")
    ] = False,
) -> None:
    """Write a folder to carry to a device: artifacts, clips, what must come out, and the program that measures there.

    The device needs Python, numpy and the engines, or torch for an NVIDIA GPU; `qray run table OUT --measured
    measured.json` takes what it brings.
    """
    from qray.judge.judge import read_evidence
    from qray.kits.clips import decode_clips, kit_clips
    from qray.kits.make import kit_variants, make_kit
    from qray.storage.out import held
    from qray.storage.place import place_of

    evidence = read_evidence(out)
    chosen, left = kit_variants(evidence, variants or [], device, allow_code)
    if to.exists():
        raise UsageError(f"--to {to} is there already; name a folder that is not")
    named = kit_clips(evidence.study, None if data is None else place_of(data, "--data"), clips)
    frames = decode_clips(named, evidence.study)
    with held(out):
        identity = make_kit(evidence, chosen, named, frames, to)
    for name, why in left.items():
        print(visible(f"left out: {name}: {why}"))
    print(
        visible(
            f"Kit {identity[:12]}: {len(chosen)} variants and {len(named)} clips in {to}; {to / 'README.txt'} says how"
        )
    )


def diff_outs(
    a: Annotated[Path, typer.Argument(help="Output folder (or URI) of the run to compare with.", parser=proof_here)],
    b: Annotated[Path, typer.Argument(help="Output folder (or URI) of the newer run.", parser=proof_here)],
    tolerance: Annotated[
        float | None, typer.Option(help="Growth of MAE that is no regression; default: a tenth of A's margin.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what changed from run A to run B; exit code 4 on a regression.

    A regression is a variant lost, a verdict that got worse, an MAE whose growth is over the tolerance with its
    interval above 0, or an artifact over 5 % larger. Latency never is: two runs are not interleaved.
    """
    _check("--tolerance", tolerance, zero=True)
    from qray.answers.diff import diff_runs
    from qray.judge.judge import read_evidence
    from qray.words.show_answers import print_diff
    from qray.words.terminal import results_console, to_json

    found = diff_runs(read_evidence(a), read_evidence(b), tolerance)
    if as_json:
        print(to_json(found))
    else:
        print_diff(found, results_console())
    if found.regressions:
        more = f", and {len(found.regressions) - 1} more" if len(found.regressions) > 1 else ""
        raise Regression(f"{b} is worse than {a}: {found.regressions[0]}{more}")


def _check(option: str, value: float | None, *, zero: bool = False) -> None:
    if value is not None and not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise UsageError(f"{option} {value:g}: expected a number {'of 0 or more' if zero else 'over 0'}")


def show_seeds(
    outs: Annotated[
        list[Path],
        typer.Argument(help="Output folders (or URIs) of runs that differ in their seed.", parser=proof_here),
    ],
    as_json: JsonOption = False,
) -> None:
    """Put runs of one study with several seeds together: verdicts on the method, not on one training."""
    from qray.answers.seeds import over_seeds
    from qray.judge.judge import read_evidence
    from qray.words.show_answers import print_seeds
    from qray.words.terminal import results_console, to_json

    found = over_seeds([read_evidence(out) for out in outs])
    if as_json:
        print(to_json(found))
    else:
        print_seeds(found, results_console())


def write_model_cards(
    out: WrittenOut,
    variants: Annotated[list[str] | None, typer.Argument(help="Default: every variant with an artifact.")] = None,
) -> None:
    """Write a model card (Markdown) per artifact: OUT/cards/VARIANT.md."""
    from qray.judge.judge import read_evidence
    from qray.storage.out import held, mirror_of
    from qray.words.card import write_cards

    evidence = read_evidence(out)
    # Beside a run in a folder nothing is in the way; what is sent is sent by one.
    with held(out) if mirror_of(out) is not None else nullcontext():
        for path in write_cards(evidence, variants or []):
            print(visible(str(path)))


def track_run(
    out: TrackedOut,
    tracking_uri: Annotated[str | None, typer.Option(help="Default: MLFLOW_TRACKING_URI, else MLflow's own.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Default: MLFLOW_EXPERIMENT_NAME, else qray.")] = None,
) -> None:
    """Write a run to MLflow; the same run again is updated, never doubled."""
    from qray.judge.judge import read_evidence
    from qray.trackers.mlflow import track

    done = track(read_evidence(out), tracking_uri, experiment)
    what = "updated" if done.updated else "made"
    print(f"MLflow {done.uri}, experiment {done.experiment}: run {done.run_id} {what}, {done.rows} nested runs")
