"""Files judged in a process apart: one that crashes the decoder, or with which it never ends, costs itself alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

from qray.apart import start_apart
from qray.data.probe import Probe, probe
from qray.errors import ClipError, QrayError
from qray.reasons import reason_of
from qray.storage.cache import local_copy

#: Seconds without a word after which the files in hand are taken for such as no decoder ends with.
SILENCE_S = 300.0


#: What is judged: a path, or a URI of `storage.cache.located`.
File = Path | str


class _LostError(Exception):
    """The process is gone: how, and the files that it had in hand."""

    def __init__(self, how: str, files: list[File]) -> None:
        super().__init__(how)
        self.how, self.files = how, files


def answer_all() -> None:
    """Body of the process: judge each file that a line names, side by side, until there are no more lines."""
    one_at_a_time = Lock()

    def answer(name: str) -> None:
        try:
            facts = _facts(name)
        except Exception as error:
            # Unheard of; unanswered, it would be waited for.
            facts = asdict(Probe(0, "", error=f"cannot be judged ({type(error).__name__}: {reason_of(str(error))})"))
        line = json.dumps([name, facts])
        with one_at_a_time:
            print(line, flush=True)

    # As many are asked for as are to be judged at a time.
    with ThreadPoolExecutor(64) as pool:
        for line in sys.stdin:
            pool.submit(answer, json.loads(line))
        # Whoever asked is gone, or has been told all: a decoder that never ends is not waited for.
        sys.stdout.flush()
        os._exit(0)


def _facts(name: str) -> dict[str, Any]:
    """What `probe` says of a path or URI; or, under "unreachable", why the store did not give it."""
    try:
        with local_copy(name) as path:
            return asdict(probe(path))
    except ClipError as error:
        return asdict(Probe(0, "", error=str(error)))
    except QrayError as error:
        return {"unreachable": str(error)}


class _Judge:
    """The process, and the lines that it has said."""

    def __init__(self) -> None:
        # The end of who asks closes the pipe, which ends this.
        self.process = start_apart(__name__, "answer_all", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.lines: SimpleQueue[bytes] = SimpleQueue()
        Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(b"")

    def ask(self, name: str) -> None:
        """Raises BrokenPipeError."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(name).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> tuple[str, Probe]:
        """Raises BrokenPipeError; Empty: after a long silence; QrayError: a file cannot be had from where it lies."""
        line = self.lines.get(timeout=SILENCE_S)
        if not line:
            raise BrokenPipeError
        name, facts = json.loads(line)
        if "unreachable" in facts:
            raise QrayError(facts["unreachable"])
        return name, Probe(**facts)

    def end(self) -> None:
        """Whatever it is at."""
        self.process.kill()
        self.process.wait()


#: What has been started, for the next call: it takes half a second.
_kept: list[_Judge] = []


def end_probing() -> None:
    """End the process that is kept for the next call."""
    while _kept:
        _kept.pop().end()


def _named(file: File) -> str:
    return str(file.absolute()) if isinstance(file, Path) else file


def _ask(paths: Sequence[File], at_a_time: int) -> Iterator[tuple[File, Probe]]:
    """Raises _LostError."""
    judge = _kept.pop() if _kept else _Judge()
    waiting, asked = iter(paths), dict[str, File]()
    try:
        while True:
            while len(asked) < at_a_time and (path := next(waiting, None)) is not None:
                asked[_named(path)] = path
                judge.ask(_named(path))
            if not asked:
                _kept.append(judge)
                return
            name, facts = judge.answer()
            yield asked.pop(name), facts
    except Empty:
        raise _LostError(f"decoding it does not end ({SILENCE_S:.0f} s)", list(asked.values())) from None
    except BrokenPipeError:
        number = judge.process.wait()
        how = signal.Signals(-number).name if number < 0 else f"exit code {number}"
        raise _LostError(f"decoding it ends the process ({how})", list(asked.values())) from None
    finally:
        if judge not in _kept:
            judge.end()


def _alone(path: File) -> Probe:
    try:
        return next(facts for _, facts in _ask([path], 1))
    except _LostError as lost:
        return Probe(0, "", error=lost.how)


def probe_files(paths: Sequence[File], at_a_time: int) -> Iterator[tuple[File, Probe]]:
    """Judge each file, `at_a_time` of them side by side; in the order in which they are done.

    What the process had in hand when it was lost is judged again, each file alone: one that it is lost with again is no
    clip, and the reason says how; the others were beside it, or the process was killed for no fault of theirs.
    """
    left = dict.fromkeys(paths)
    while left:
        try:
            for path, facts in _ask(list(left), at_a_time):
                del left[path]
                yield path, facts
        except _LostError as lost:
            for path in lost.files:
                del left[path]
                yield path, _alone(path)
