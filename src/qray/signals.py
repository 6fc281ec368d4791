"""SIGTERM ends a command as Ctrl-C does, so that a scheduler's stop leaves finished units on disk and no Ray behind."""

from __future__ import annotations

import signal
import threading
from types import FrameType

#: Exit codes that shells give a process ended by these signals.
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM

_terminated = False


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    global _terminated
    _terminated = True
    # Ray's waits give way to this exception and to no other.
    raise KeyboardInterrupt


def handle_sigterm() -> None:
    """Turn SIGTERM into KeyboardInterrupt. To be called again after `ray.init`, which sets a handler of its own."""
    # Python allows handlers in the main thread alone; a program that uses qray elsewhere has handlers of its own.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _on_sigterm)


def interrupted_exit_code() -> int:
    """143 when SIGTERM ended the command, 130 when Ctrl-C did."""
    return EXIT_TERMINATED if _terminated else EXIT_INTERRUPTED
