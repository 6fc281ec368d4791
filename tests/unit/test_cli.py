"""The command line as a user meets it, by exit code, stdout and stderr; in a process of its own where that matters."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import main_here, qray

HEAVY = ("torch", "ray", "pandas", "numpy", "av", "pyarrow", "yaml")
HELP = (["--help"], ["run", "--help"], ["run", "all", "--help"], ["data", "--help"])


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_ends_with_0_and_imports_no_heavy_module(arguments: list[str]) -> None:
    code = (
        "import sys; from qray.cli import app\n"
        f"try: app(args={arguments!r})\n"
        "except SystemExit as ended: code = ended.code\n"
        f"print('ended with', code, 'loaded', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "ended with 0 loaded []"


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


def test_version_ends_with_0() -> None:
    assert qray("--version").code == 0


def test_help_names_every_command_of_the_design() -> None:
    text = main_here("--help").stdout
    assert [name for name in ("run", "data", "show", "predict", "submit", "doctor") if f" {name} " not in text] == []


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["run", "bogus"], ["run", "all", "--bogus"], ["run", "all", "--num-cpus", "0"], ["predict"]],
    ids=" ".join,
)
def test_bad_usage_exits_with_2(arguments: list[str]) -> None:
    assert main_here(*arguments).code == 2


def test_an_unknown_study_exits_with_2_and_lists_the_names() -> None:
    done = main_here("run", "all", "--study", "nope")
    assert (done.code, "echonet, echonet_video, edge, efficientnet_b0, gpu, imported" in done.stderr) == (2, True)


def test_a_bad_study_leaves_stdout_empty() -> None:
    assert main_here("run", "all", "--set", "foo=1").stdout == ""


def test_a_failed_run_exits_with_1_and_a_sentence(tmp_path: Path) -> None:
    done = qray("run", "all", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"))
    assert done.code == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--debug", "run", "all"], ["run", "--debug", "all"], ["run", "all", "--debug"]],
    ids=" ".join,
)
def test_debug_shows_the_traceback_wherever_it_stands(arguments: list[str]) -> None:
    done = main_here(*arguments, "--set", "foo=1")
    assert "Traceback" in done.stderr


def test_debug_keeps_the_exit_code() -> None:
    assert main_here("--debug", "run", "all", "--set", "foo=1").code == 2


def test_out_that_is_a_file_is_bad_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = main_here("run", "train", "--out", str(tmp_path / "file"))
    assert (done.code, "is not a folder" in done.stderr) == (2, True)


def test_out_under_a_file_is_bad_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = main_here("run", "train", "--out", str(tmp_path / "file" / "out"))
    assert (done.code, "lies under a file" in done.stderr) == (2, True)


def test_out_that_cannot_be_written_is_bad_usage() -> None:
    done = main_here("run", "train", "--out", "/proc/qray-out")
    assert (done.code, "cannot be written to" in done.stderr) == (2, True)


def test_fresh_does_not_touch_a_folder_that_holds_no_run(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    done = main_here("run", "train", "--out", str(tmp_path), "--fresh")
    assert (done.code, (tmp_path / "artifacts").is_dir()) == (2, True)


def test_fresh_and_table_contradict_each_other(tmp_path: Path) -> None:
    assert main_here("run", "table", "--out", str(tmp_path), "--fresh").code == 2


def test_show_without_results_says_how_to_make_them(tmp_path: Path) -> None:
    done = main_here("show", str(tmp_path))
    assert (done.code, "qray run all" in done.stderr) == (1, True)


@pytest.mark.parametrize(("name", "exit_code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_the_command_with_a_sentence_and_the_exit_code_of_a_shell(name: str, exit_code: int) -> None:
    code = (
        "import os, signal, qray.jobs.submit, qray.cli\n"
        # A test run that was started in the background hands down an ignored SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "qray.jobs.submit.submit = lambda *_: os.kill(os.getpid(), getattr(signal, os.environ['SENT']))\n"
        "qray.cli.main()"
    )
    command = [sys.executable, "-c", code, "submit"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"SENT": name}, check=False)
    # After Ctrl-C, whose user may press it again, a line says what that would do.
    *told, last = done.stderr.strip().split("\n")
    assert (done.returncode, last.startswith("interrupted; ")) == (exit_code, True)
    assert told == (["ending; once more ends it at once"] if name == "SIGINT" else [])


def test_data_check_prints_json_for_machines(tiny_dataset: Path) -> None:
    done = main_here("data", "check", str(tiny_dataset), "--json")
    assert json.loads(done.stdout)["clips"] == {"TRAIN": 24, "VAL": 10, "TEST": 12}


def test_data_synth_makes_a_set_that_data_check_passes(tmp_path: Path) -> None:
    qray("data", "synth", str(tmp_path / "set"), "--train", "2", "--val", "1", "--test", "1", "--workers", "1")
    assert qray("data", "check", str(tmp_path / "set")).code == 0
