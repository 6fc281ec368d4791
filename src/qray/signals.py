"""SIGTERM and SIGHUP end a command as Ctrl-C does: a scheduler's stop or a closed terminal leaves finished units on
disk and no Ray behind."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

#: Exit code that shells give a process ended by Ctrl-C; by another signal it is 128 + its number too.
EXIT_INTERRUPTED = 128 + signal.SIGINT
#: Windows has no hang-up.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

_ended_by: int = signal.SIGINT


def _end(number: int, _frame: FrameType | None) -> None:
    global _ended_by
    _ended_by = number
    if number != signal.SIGTERM:
        # A closed terminal hangs up on its jobs more than once, and what follows is the orderly end.
        signal.signal(number, signal.SIG_IGN)
        _forget_dead_terminal()
    # Ray's waits give way to this exception and to no other.
    raise KeyboardInterrupt


def _forget_dead_terminal() -> None:
    """Send to nowhere what would be written to a terminal that is gone: each such line would be another error."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)


@contextlib.contextmanager
def hangup_blocked() -> Iterator[None]:
    """Hold a SIGHUP back; processes started meanwhile never see one, so that who started them can end them in order."""
    if not hasattr(signal, "SIGHUP") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def handle_signals() -> None:
    """Turn SIGTERM and SIGHUP into KeyboardInterrupt. To be called again after `ray.init`, which sets handlers too."""
    # Python allows handlers in the main thread alone; a program that uses qray elsewhere has handlers of its own.
    if threading.current_thread() is not threading.main_thread():
        return
    for number in ENDING:
        # `nohup` and a background job of some shells ignore the hang-up: their user wants the run to go on.
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def interrupted_exit_code() -> int:
    """143 when SIGTERM ended the command, 129 when SIGHUP did, 130 when Ctrl-C did."""
    return 128 + _ended_by
