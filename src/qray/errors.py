"""The errors a user is meant to read: a plain sentence, no traceback, and the exit code that goes with it."""

from __future__ import annotations


class QrayError(Exception):
    """The run cannot go on. The message says what was found, what was expected and what to do (exit code 1)."""

    exit_code = 1


class UsageError(QrayError):
    """Bad usage or a bad study, named by its key and line (exit code 2)."""

    exit_code = 2


class Unavailable(QrayError):
    """A variant cannot be built on this machine (engine, compiler or CPU feature missing): a skipped row."""


class NotYet(Unavailable):
    """The same, where a node that is yet to come may have it."""


class Lost(QrayError):
    """A process went, from outside, while it worked on something: the work itself may be asked for again."""


class NothingQualifies(QrayError):
    """No variant of a run may be shipped under what was asked (exit code 3)."""

    exit_code = 3


class Regression(QrayError):
    """A run is worse than the one it was compared with (exit code 4)."""

    exit_code = 4


class Ended(QrayError):
    """What was followed ended without success; the exit code is its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ClipError(Exception):
    """A clip could not be decoded; the message is the reason, in a line. One clip is left out, the others go on."""


class Diverged(QrayError):
    """The loss or a prediction is not a number any more: what comes of these settings, whenever they are tried."""
