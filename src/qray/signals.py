"""Ctrl-C, SIGTERM and SIGHUP end a command in order: finished units are on disk, no Ray is left. The second time they
end it at once, with all processes that it has started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType

#: Exit code that shells give a process ended by Ctrl-C; by another signal it is 128 + its number too.
EXIT_INTERRUPTED = 128 + signal.SIGINT
#: Windows has no hang-up.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: Seconds in which a second signal is the first one's echo: a terminal sends it to a group, of which some pass it on.
ECHO_S = 0.5

_ended_by: int = signal.SIGINT
#: Where the numbers of further signals arrive once the end has begun.
_further: tuple[socket.socket, socket.socket] | None = None


def _end(number: int, _frame: FrameType | None) -> None:
    global _ended_by
    if _further is not None:
        return  # What is more than an echo, the thread acts on.
    _ended_by = number
    if number not in (signal.SIGINT, signal.SIGTERM):
        # A closed terminal hangs up on its jobs more than once, and what follows is the orderly end.
        signal.signal(number, signal.SIG_IGN)
        _forget_dead_terminal()
    _heed_the_next()
    if number == signal.SIGINT:
        with contextlib.suppress(OSError):
            os.write(2, b"\nending; once more ends it at once\n")
    # Ray's waits give way to this exception and to no other.
    raise KeyboardInterrupt


def _heed_the_next() -> None:
    """From here on another signal is acted on by a thread: the main one may be waiting for Ray, in C++."""
    global _further
    _further = ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    begun = time.monotonic()

    def listen() -> None:
        while number := ours.recv(1):
            if number[0] in (signal.SIGINT, signal.SIGTERM) and time.monotonic() - begun > ECHO_S:
                _end_at_once(number[0])

    threading.Thread(target=listen, daemon=True).start()


def _end_at_once(number: int) -> None:
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()
    with contextlib.suppress(OSError):
        os.write(2, b"ended at once; the same command goes on from what was finished\n")
    os._exit(128 + number)


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
    """Turn the first of them into KeyboardInterrupt. To be called again after `ray.init`, which sets handlers too."""
    # Python allows handlers in the main thread alone; a program that uses qray elsewhere has handlers of its own.
    if threading.current_thread() is not threading.main_thread():
        return
    for number in ENDING:
        # `nohup` ignores the hang-up, and some shells Ctrl-C in the background: their user wants the run to go on.
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def interrupted_exit_code() -> int:
    """143 when SIGTERM ended the command, 129 when SIGHUP did, 130 when Ctrl-C did."""
    return 128 + _ended_by
