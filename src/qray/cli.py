"""The command line: which command is which function, and how it ends. The functions import what they need themselves,
so that --help is fast."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from qray import commands, questions
from qray.errors import QrayError
from qray.escape import visible
from qray.importing.command import import_model
from qray.jobs.command import jobs_app, submit_job
from qray.signals import EXIT_INTERRUPTED, handle_signals, interrupted_exit_code

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=(
    "Which quantized form of a video-regression model to run where, and what it costs in accuracy."))  # fmt: skip
run_app = typer.Typer(no_args_is_help=True, help="Run a study, or one stage with what it needs.")
data_app = typer.Typer(no_args_is_help=True, help="Make or check a data set.")
app.add_typer(run_app, name="run")
app.add_typer(data_app, name="data")
app.add_typer(jobs_app, name="jobs")

for _stage, _help in commands.STAGES.items():
    run_app.command(_stage, help=_help)(commands.run_stage)
run_app.command("table")(commands.write_table_anew)
data_app.command("synth")(commands.make_data)
data_app.command("check")(commands.check_data)
COMMANDS: dict[str, Callable[..., None]] = {
    "import": import_model,
    "show": questions.show_results,
    "columns": questions.print_columns,
    "report": questions.report_run,
    "pick": questions.pick_variant,
    "diff": questions.diff_outs,
    "seeds": questions.show_seeds,
    "predict": commands.predict_files,
    "kit": questions.make_kit_of,
    "card": questions.write_model_cards,
    "track": questions.track_run,
    "doctor": commands.run_doctor,
    "submit": submit_job,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


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
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "; make room: what was finished is kept, and the same command goes on from there" if full else ""
        _fail(f"{error}{advice}", 1, debug)
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
