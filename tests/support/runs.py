"""Run qray as its users do, in a process of its own, and read what it left."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
from typer.testing import CliRunner

STUDIES = Path(__file__).parents[1] / "studies"
TINY = STUDIES / "tiny.yaml"
#: Of the tiny study the least that a run can be.
FP32_ALONE = ("--set", "variants=[{name: fp32, method: fp32, engine: eager}]", "--set", "sweep=null",
              "--set", "training.epochs=1")  # fmt: skip
#: The tiny study's variants and a mix.
_MIXED = ("--set", "variants=[" + ", ".join((
    "{name: fp32, method: fp32, engine: eager}", "{name: finetune, method: finetune, engine: eager}",
    "{name: ptq-onnxruntime, method: ptq, engine: onnxruntime, observer: minmax}",
    "{name: mixed, method: ptq, engine: onnxruntime, observer: minmax, accuracy: {within: 50}}",
)) + "]")  # fmt: skip
#: What whole runs are asked besides the tiny study, by the number of CPUs. What one does need not be done by each: the
#: layers, a mix, a second batch size.
WHOLE = {
    1: ("--set", "sensitivity={clips: 6, observer: minmax, tasks: 1}"), 2: ("--set", "measure.batches=[1, 2]"),
    4: _MIXED,
}  # fmt: skip
#: The known hang of Ray Data lasts for ever; a busy machine is only slow.
RUN_TIMEOUT_S = 900.0
END_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def command(*arguments: object) -> list[str]:
    """The command line of `qray ARGUMENTS`."""
    return [sys.executable, "-m", "qray", *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, in which qray starts a Ray of its own."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | changes


def qray(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout_s: float = RUN_TIMEOUT_S
) -> Finished:
    """Run a command to its end; one that does not end fails with what it had printed."""
    process = start(*arguments, cwd=cwd, env=env)
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"qray {arguments} did not end in {timeout_s:.0f} s:\n{out}\n{err}") from None
    return Finished(process.returncode, out, err)


def start(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, log: Path | None = None
) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, which Ctrl-C and a hang-up reach even if the tests run in the
    background or under nohup. log: a file for all that it says, to be read while it does."""

    def heed() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    with ExitStack() as stack:
        out = subprocess.PIPE if log is None else stack.enter_context(log.open("w"))
        return subprocess.Popen(
            command(*arguments), cwd=cwd, env=dict(env or environment()), text=True, start_new_session=True,
            stdout=out, stderr=subprocess.PIPE if log is None else subprocess.STDOUT, stdin=subprocess.DEVNULL,
            preexec_fn=heed,
        )  # fmt: skip


def run_tiny(stage: str, data: Path, out: Path, *more: object, **options: Any) -> Finished:
    """`qray run STAGE` of the tiny study."""
    return qray("run", stage, "--study", TINY, "--data", data, "--out", out, *more, **options)


def here(*arguments: object) -> Finished:
    """A command that starts no Ray, in this process: what it takes is the command's own time, not that of imports."""
    from qray.cli import app

    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    return Finished(done.exit_code, done.stdout, done.stderr)


def main_here(*arguments: object) -> Finished:
    """The same, with what the command line makes of errors: sentences and exit codes."""
    from qray import cli

    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        patch.object(sys, "argv", ["qray", *map(str, arguments)]), patch.object(cli, "handle_signals"),
        redirect_stdout(out), redirect_stderr(err),
    ):  # fmt: skip
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Finished(code, out.getvalue(), err.getvalue())


def tiny_here(stage: str, data: Path, out: Path, *more: object) -> Finished:
    """`qray run STAGE` of the tiny study, where everything is done already."""
    done = here("run", stage, "--study", TINY, "--data", data, "--out", out, *more)
    assert "Ray dashboard" not in done.stderr, "there was work left"
    return done


def wait_until(true: Callable[[], bool], what: str, timeout_s: float = RUN_TIMEOUT_S, every_s: float = 0.1) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(every_s)


def kill(process: subprocess.Popen[str]) -> None:
    """What `kill -9` does to the command alone: its Ray notices by itself."""
    process.kill()
    process.communicate(timeout=END_TIMEOUT_S)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def results(out: Path) -> pd.DataFrame:
    """results.parquet of a run."""
    return pd.read_parquet(out / "results.parquet")


def predictions(out: Path, variant: str) -> pd.Series:
    """TEST predictions of a variant, by clip."""
    files = sorted((out / "predictions").glob("variant=*/test.parquet"))
    keys = {file.parent.name.removeprefix("variant="): file for file in files}
    rows = results(out)
    wanted = next(unit["files"][0] for unit in units(out, "evaluate") if unit["label"] == f"evaluate {variant}")
    assert keys, f"{out} holds no predictions"
    assert variant in set(rows["variant"]), f"{variant} is no row of {out}"
    return pd.read_parquet(out / wanted).set_index("clip")["prediction"]


def units(out: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind of unit."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in (out / "units").glob(f"{kind}-*.json")]


def unit_times(out: Path) -> dict[str, int]:
    """When each unit was written, in nanoseconds, by file name. Half a unit of a killed run is none."""
    return {unit.name: unit.stat().st_mtime_ns for unit in sorted((out / "units").glob("[!.]*-*.json"))}


def lines_with(text: str, word: str) -> Sequence[str]:
    """The lines of a log that hold a word."""
    return [line for line in text.splitlines() if word in line]
