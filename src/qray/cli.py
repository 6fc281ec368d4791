"""The command line: parse, call, print; nothing else. Imports stay inside the commands, so that --help is fast."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from qray.errors import QrayError
from qray.escape import visible
from qray.signals import EXIT_INTERRUPTED, handle_signals, interrupted_exit_code

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=(
    "Which quantized form of a video-regression model to run where, and what it costs in accuracy."))  # fmt: skip
run_app = typer.Typer(no_args_is_help=True, help="Run a study, or one stage with what it needs.")
data_app = typer.Typer(no_args_is_help=True, help="Make or check a data set.")
app.add_typer(run_app, name="run")
app.add_typer(data_app, name="data")

StudyOption = Annotated[str, typer.Option("--study", help="A named study or a .yaml file.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="Data set folder; default: the study's own.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Output folder; default: runs/<study>.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set training.epochs=3.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Forget what OUT holds and begin anew.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
CpusOption = Annotated[int | None, typer.Option("--num-cpus", min=1, help="Logical CPUs of a local Ray.")]

STAGE_HELP = {
    "all": "Train, quantize, evaluate, measure, and write one table: the main job.",
    "train": "Train the FP32 model.",
    "build": "Build every variant.",
    "sweep": "Run the QAT sweep.",
    "evaluate": "Evaluate every variant on TEST.",
    "measure": "Measure latency and memory of every variant.",
    "sensitivity": "Quantize each layer alone, and all but it: where the error comes from.",
}


def _add_stage(stage: str) -> None:
    def command(
        study: StudyOption = "quickstart",
        data: DataOption = None,
        out: OutOption = None,
        set_: SetOption = None,
        fresh: FreshOption = False,
        json_: JsonOption = False,
        num_cpus: CpusOption = None,
    ) -> None:
        from qray.commands import run_stage

        run_stage(stage, study, data, out, set_ or [], fresh, json_, num_cpus)

    run_app.command(stage, help=STAGE_HELP[stage])(command)


for _stage in STAGE_HELP:
    _add_stage(_stage)


@run_app.command("table")
def run_table(
    folder: Annotated[Path | None, typer.Argument(metavar="OUT", help="Output folder of a run.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The same.")] = None,
    json_: JsonOption = False,
) -> None:
    """Write results.parquet anew from what OUT holds, by the study that it holds; needs no data set."""
    from qray.commands import write_table_anew

    write_table_anew(folder, out, json_)


@data_app.command("synth")
def data_synth(
    folder: Annotated[Path, typer.Argument(help="Where to write the data set.")],
    train: Annotated[int, typer.Option(min=0)] = 1000,
    val: Annotated[int, typer.Option(min=0)] = 150,
    test: Annotated[int, typer.Option(min=0)] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """Make the synthetic apical four-chamber data set, in the EchoNet-Dynamic layout."""
    from qray.data.synth import synthesize

    synthesize(folder, {"TRAIN": train, "VAL": val, "TEST": test}, seed, workers)
    typer.echo(f"Data set: {folder}")


@data_app.command("check")
def data_check(
    folder: Annotated[Path, typer.Argument(help="The data set's folder.")],
    study: StudyOption = "quickstart",
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Check a data set, listing each rejected clip and why."""
    from qray.commands import check_data

    check_data(folder, study, set_ or [], json_)


@app.command()
def show(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    json_: JsonOption = False,
) -> None:
    """Print the table of a run."""
    from qray.commands import show_results

    show_results(out, json_)


@app.command()
def columns(json_: JsonOption = False) -> None:
    """Say what each column of results.parquet means, and in which unit."""
    from qray.words.show import print_columns

    print_columns(json_)


@app.command()
def report(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    data: Annotated[Path | None, typer.Option(help="Data set folder, for pictures of clips.")] = None,
) -> None:
    """Write what a run proves, for people: OUT/report.html, report.md and report/*.png."""
    from qray.reporting import report_run

    report_run(out, data)


@app.command()
def pick(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Most milliseconds per call (median, upper end).")
    ] = None,
    max_size_mb: Annotated[float | None, typer.Option(help="Most megabytes of the artifact as shipped.")] = None,
    max_rss_mb: Annotated[float | None, typer.Option(help="Most megabytes of peak memory.")] = None,
    margin: Annotated[float | None, typer.Option(help="Another margin than the study declared.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Measured thread count; default: the first.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Measured batch size; default: the first.")] = None,
    json_: JsonOption = False,
) -> None:
    """Name the variant to ship, and why; exit code 3 if none qualifies.

    Of the variants that are non-inferior and meet the bounds it is the fastest whose interval separates; ties go to
    the smallest, then to the lowest MAE.
    """
    from qray.decisions import pick_variant

    pick_variant(out, max_latency_ms, max_size_mb, max_rss_mb, margin, threads, batch, json_)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="Output folder of the run to compare with.")],
    b: Annotated[Path, typer.Argument(help="Output folder of the newer run.")],
    tolerance: Annotated[
        float | None, typer.Option(help="Growth of MAE that is no regression; default: a tenth of A's margin.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Say what changed from run A to run B; exit code 4 on a regression.

    A regression is a variant lost, a verdict that got worse, an MAE whose growth is over the tolerance with its
    interval above 0, or an artifact over 5 % larger. Latency never is: two runs are not interleaved.
    """
    from qray.decisions import diff_outs

    diff_outs(a, b, tolerance, json_)


@app.command()
def seeds(
    outs: Annotated[list[Path], typer.Argument(help="Output folders of runs that differ in their seed.")],
    json_: JsonOption = False,
) -> None:
    """Put runs of one study with several seeds together: verdicts on the method, not on one training."""
    from qray.commands import show_seeds

    show_seeds(outs, json_)


@app.command()
def predict(
    artifact: Annotated[Path, typer.Argument(help="A folder such as OUT/artifacts/KEY.")],
    videos: Annotated[list[Path], typer.Argument(help="Video files.")],
    threads: Annotated[int, typer.Option(min=1)] = 1,
    json_: JsonOption = False,
) -> None:
    """Predict videos with an artifact that was built."""
    from qray.commands import predict_files

    predict_files(artifact, videos, threads, json_)


@app.command()
def card(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    variants: Annotated[list[str] | None, typer.Argument(help="Default: every variant with an artifact.")] = None,
) -> None:
    """Write a model card (Markdown) per artifact: OUT/cards/VARIANT.md."""
    from qray.commands import write_model_cards

    write_model_cards(out, variants or [])


@app.command()
def track(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    tracking_uri: Annotated[str | None, typer.Option(help="Default: MLFLOW_TRACKING_URI, else MLflow's own.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Default: MLFLOW_EXPERIMENT_NAME, else qray.")] = None,
) -> None:
    """Write a run to MLflow; the same run again is updated, never doubled."""
    from qray.commands import track_run

    track_run(out, tracking_uri, experiment)


@app.command()
def doctor(json_: JsonOption = False) -> None:
    """Say what this machine can do: engines, CPU, GPU, video, Ray."""
    from qray.commands import run_doctor

    run_doctor(json_)


@app.command()
def submit(
    address: Annotated[str, typer.Option(help="The cluster's dashboard.")] = "http://127.0.0.1:8265",
    wait: Annotated[bool, typer.Option(help="Follow the job's log until it ends.")] = True,
    study: StudyOption = "quickstart",
    data: Annotated[Path | None, typer.Option(help="Data set folder, as every node sees it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder on the head; default: ~/qray-jobs/runs/<study>.")] = (
        None
    ),
    set_: SetOption = None,
    fresh: FreshOption = False,
    json_: JsonOption = False,
) -> None:
    """Run `qray run all` as a job on a cluster. Sends qray and the study, and no data."""
    from qray.commands import submit_job

    more = ["--fresh"] * fresh + ["--json"] * json_
    submit_job(address, wait, study, data, out, set_ or [], more)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """Options of every command."""
    if version:
        from qray import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; errors meant for the user end as a sentence and their exit code."""
    arguments, debug = _take_debug(sys.argv[1:])
    handle_signals()
    try:
        app(args=arguments)
    except QrayError as error:
        _fail(str(error), error.exit_code, debug)
    except SystemExit as ended:
        # Typer turns Ctrl-C into this code, without a word.
        if ended.code != EXIT_INTERRUPTED:
            raise
        # After a hang-up there may be nobody to read it.
        with contextlib.suppress(OSError):
            typer.echo("interrupted; the same command goes on from what was finished", err=True)
        sys.exit(interrupted_exit_code())
    except OSError as error:
        # Disk full, no permission, no such folder: the system's words name the path.
        _fail(str(error), 1, debug)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error} (a fault of qray; --debug shows where)", 1, debug)


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """`--debug` is taken wherever it stands before a `--`, so that it can be added to the end of what failed."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    rest = [argument for argument in arguments[:end] if argument != "--debug"]
    return rest + arguments[end:], len(rest) < end


def _fail(message: str, exit_code: int, debug: bool) -> NoReturn:
    if debug:
        import traceback

        traceback.print_exc()
    typer.echo(visible(f"error: {message}"), err=True)
    sys.exit(exit_code)
