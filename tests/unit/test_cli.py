"""The command line as a user meets it: in a process of its own, by exit code, stdout and stderr."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "ray", "pandas", "numpy", "av", "pyarrow", "yaml")
HELP = (["--help"], ["run", "--help"], ["run", "all", "--help"], ["data", "--help"])


def qray(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qray", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60, check=False)


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_imports_no_heavy_module(arguments: list[str]) -> None:
    code = (
        "import sys; from qray.cli import app\n"
        f"try: app(args={arguments!r})\n"
        "except SystemExit: pass\n"
        f"print('loaded:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_run_that_finds_everything_done_imports_no_heavy_module() -> None:
    heavy = ["torch", "ray", "scipy", "matplotlib"]
    code = f"import sys, qray.units.run; print([module for module in {heavy} if module in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["[]"]


def test_help_takes_less_than_a_second() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        qray("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Seconds of CPU, which busy neighbours do not change.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1


@pytest.mark.parametrize("arguments", [*HELP, ["--version"]], ids=" ".join)
def test_help_and_version_exit_with_0(arguments: list[str]) -> None:
    assert qray(*arguments).returncode == 0


def test_help_names_every_command_of_the_design() -> None:
    text = qray("--help").stdout
    assert [name for name in ("run", "data", "show", "predict", "submit", "doctor") if f" {name} " not in text] == []


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["run", "bogus"], ["run", "all", "--bogus"], ["run", "all", "--num-cpus", "0"], ["predict"]],
    ids=" ".join,
)
def test_bad_usage_exits_with_2(arguments: list[str]) -> None:
    assert qray(*arguments).returncode == 2


def test_an_unknown_study_exits_with_2_and_lists_the_names() -> None:
    done = qray("run", "all", "--study", "nope")
    assert (done.returncode, "echonet, quickstart, report" in done.stderr) == (2, True)


def test_a_bad_study_leaves_stdout_empty() -> None:
    assert qray("run", "all", "--set", "foo=1").stdout == ""


def test_a_failed_run_exits_with_1_and_a_sentence(tmp_path: Path) -> None:
    done = qray("run", "all", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--debug", "run", "all"], ["run", "--debug", "all"], ["run", "all", "--debug"]],
    ids=" ".join,
)
def test_debug_shows_the_traceback_wherever_it_stands(arguments: list[str]) -> None:
    done = qray(*arguments, "--set", "foo=1")
    assert "Traceback" in done.stderr


def test_debug_keeps_the_exit_code() -> None:
    assert qray("--debug", "run", "all", "--set", "foo=1").returncode == 2


def test_out_that_is_a_file_is_bad_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = qray("run", "train", "--out", str(tmp_path / "file"))
    assert (done.returncode, "is not a folder" in done.stderr) == (2, True)


def test_out_under_a_file_is_bad_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = qray("run", "train", "--out", str(tmp_path / "file" / "out"))
    assert (done.returncode, "lies under a file" in done.stderr) == (2, True)


def test_out_that_cannot_be_written_is_bad_usage() -> None:
    done = qray("run", "train", "--out", "/proc/qray-out")
    assert (done.returncode, "cannot be written to" in done.stderr) == (2, True)


def test_fresh_does_not_touch_a_folder_that_holds_no_run(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    done = qray("run", "train", "--out", str(tmp_path), "--fresh")
    assert (done.returncode, (tmp_path / "artifacts").is_dir()) == (2, True)


def test_fresh_and_table_contradict_each_other(tmp_path: Path) -> None:
    assert qray("run", "table", "--out", str(tmp_path), "--fresh").returncode == 2


def test_show_without_results_says_how_to_make_them(tmp_path: Path) -> None:
    done = qray("show", str(tmp_path))
    assert (done.returncode, "qray run all" in done.stderr) == (1, True)


@pytest.mark.parametrize(("name", "exit_code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_the_command_with_a_sentence_and_the_exit_code_of_a_shell(name: str, exit_code: int) -> None:
    code = (
        "import os, signal, qray.submit, qray.cli\n"
        # A test run that was started in the background hands down an ignored SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "qray.submit.submit = lambda *_: os.kill(os.getpid(), getattr(signal, os.environ['SENT']))\n"
        "qray.cli.main()"
    )
    command = [sys.executable, "-c", code, "submit"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"SENT": name}, check=False)
    assert (done.returncode, done.stderr.startswith("interrupted; ")) == (exit_code, True)


def test_data_check_prints_json_for_machines(tiny_dataset: Path) -> None:
    done = qray("data", "check", str(tiny_dataset), "--json")
    assert json.loads(done.stdout)["clips"] == {"TRAIN": 24, "VAL": 8, "TEST": 12}


def test_data_synth_makes_a_set_that_data_check_passes(tmp_path: Path) -> None:
    qray("data", "synth", str(tmp_path / "set"), "--train", "2", "--val", "1", "--test", "1", "--workers", "1")
    assert qray("data", "check", str(tmp_path / "set")).returncode == 0
