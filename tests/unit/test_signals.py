"""A hang-up ends a command in order, unless its user asked for the contrary, and never ends what that order needs."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time

import psutil
import pytest

MAIN = (
    "import os, signal, sys, time, qray.jobs.submit, qray.cli\n"
    "def command(*_):\n"
    "    print('begun', flush=True)\n"
    "    {body}\n"
    "    sys.exit()\n"
    "qray.jobs.submit.submit = command\n"
    "qray.cli.main()"
)


def run(body: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """A command that does `body`, in a process whose hang-ups end it unless `before` says otherwise."""
    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n{before}\n{MAIN.format(body=body)}"
    return subprocess.run([sys.executable, "-c", code, "submit"], capture_output=True, text=True, check=False)


def test_under_nohup_a_hangup_ends_nothing() -> None:
    done = run("os.kill(os.getpid(), signal.SIGHUP); print('ended by itself')",
               "signal.signal(signal.SIGHUP, signal.SIG_IGN)")  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "ended by itself")


def test_a_second_hangup_does_not_cut_the_orderly_end_short() -> None:
    body = (
        "try: os.kill(os.getpid(), signal.SIGHUP); time.sleep(60)\n"
        "    finally: os.kill(os.getpid(), signal.SIGHUP); print('in order', flush=True)"
    )
    done = run(body)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (129, "in order")


ENDING = "try: os.kill(os.getpid(), signal.{first}); time.sleep(60)\n    finally: {then}"


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_the_first_signal_ends_it_in_order(name: str, code: int) -> None:
    done = run(ENDING.format(first=name, then="print('in order', flush=True)"))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (code, "in order")
    assert "goes on from what was finished" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("waiting", ["time.sleep(60)", "import ctypes; ctypes.CDLL(None).sleep(60)"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_the_second_ends_it_at_once_with_what_it_started(name: str, code: int, waiting: str) -> None:
    then = (
        "child = __import__('subprocess').Popen(['sh', '-c', 'sleep 61 & wait'], start_new_session=True); "
        "print(child.pid, flush=True); "
        f"__import__('subprocess').Popen(['sh', '-c', f'sleep 1; kill -{name[3:]} {{os.getpid()}}']); "
        f"{waiting}; time.sleep(60)"
    )
    begun = time.monotonic()
    done = run(ENDING.format(first="SIGINT", then=then))
    assert done.returncode == code
    assert time.monotonic() - begun < 30
    assert "ended at once" in done.stderr
    child = int(done.stdout.split()[-1])
    # A container's first process need not fetch what has ended.
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_an_echo_of_the_first_signal_is_not_the_second() -> None:
    done = run(ENDING.format(first="SIGINT", then="os.kill(os.getpid(), signal.SIGINT); print('in order', flush=True)"))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (130, "in order")


def test_a_terminal_that_is_gone_is_not_written_to() -> None:
    # The command leads the session of a terminal of its own, whose other end is then closed.
    master, slave = pty.openpty()
    body = "try: time.sleep(60)\n    finally: print('to nobody', flush=True)"
    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n{MAIN.format(body=body)}"

    def take_terminal() -> None:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    process = subprocess.Popen([sys.executable, "-c", code, "submit"], stdin=slave, stdout=slave, stderr=slave,
                               preexec_fn=take_terminal)  # fmt: skip
    os.close(slave)
    assert b"begun" in os.read(master, 100)
    os.close(master)
    assert process.wait(30) == 129


def test_a_process_started_while_hangups_are_held_back_never_sees_one() -> None:
    code = (
        "import os, signal, subprocess, sys\n"
        "from qray.signals import hangup_blocked\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "with hangup_blocked():\n"
        "    child = subprocess.Popen(['sleep', '60'])\n"
        "child.send_signal(signal.SIGHUP)\n"
        "try: child.wait(0.5)\n"
        "except subprocess.TimeoutExpired: child.kill(); sys.exit(0)\n"
        "sys.exit(1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_hangup_that_was_held_back_comes_afterwards() -> None:
    body = (
        "from qray.signals import hangup_blocked\n"
        "    with hangup_blocked(): os.kill(os.getpid(), signal.SIGHUP); print('held', flush=True)\n"
        "    time.sleep(60)"
    )
    done = run(body)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (129, "held")
