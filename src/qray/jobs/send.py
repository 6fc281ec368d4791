"""What `qray jobs fetch` starts on the head: files of OUT, packed into the job's own log, which the dashboard hands on.

Ray's dashboard has no other way out for what a job has made. The log is emptied when its reader has it.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import os
import signal
import sys
import tarfile
import time
from pathlib import Path
from typing import BinaryIO

from qray.atomic import REPLACED, UNFINISHED
from qray.errors import QrayError
from qray.graph.store import SHOWN
from qray.judge.index import FILE, read_index

#: More than this, before it is packed, does not go through a log.
MOST_BYTES = 2 * 2**30
#: What of OUT is sent: what table, report and answers are made of, and they themselves.
SENT = (FILE, *SHOWN, "units/shown.json", "cards/*")
#: How lines begin that hold a piece of the archive, or its size in bytes and its SHA-256.
PIECE, END = "+", "="
#: Bytes in a line: more than the 20,000 characters after which the dashboard sends what it has, so that none waits.
LINE_BYTES = 48 * 2**10
#: How long a reader has to say (by ending the job) that it has all.
KEEP_S = 600.0


def files_of(out: Path, artifacts: tuple[str, ...]) -> list[Path]:
    """Files of OUT that are sent, with the artifacts of these variants.

    Raises:
        QrayError: OUT is not the output of a run, or has no such artifact.
    """
    patterns = [*SENT]
    if artifacts:
        index = read_index(out)
        keys = {name: units["build"] for name, units in index.variants.items() if "build" in units}
        there = {name for name, key in keys.items() if (out / "artifacts" / key).is_dir()}
        for name in artifacts:
            if name not in there:
                known = ", ".join(sorted(there)) or "none"
                raise QrayError(f"{out} on the head has no artifact of a variant {name!r}; those it has: {known}")
            patterns.append(f"artifacts/{keys[name]}/**/*")
    elif not (out / FILE).is_file():
        raise QrayError(f"{out} on the head is not the output of a run (yet): {FILE} is missing")
    found = {path for pattern in patterns for path in out.glob(pattern)}
    return sorted(path for path in found if path.is_file() and not path.is_symlink() and _whole(path.relative_to(out)))


def _whole(path: Path) -> bool:
    """Whether a file is none that is being written or replaced."""
    return not any(part.startswith((UNFINISHED, REPLACED)) for part in path.parts)


class Lines:
    """A file that is written to become lines of a log."""

    def __init__(self, log: BinaryIO) -> None:
        self._log, self._rest, self._digest, self.size = log, b"", hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """As files do."""
        self._digest.update(data)
        self.size += len(data)
        self._rest += data
        while len(self._rest) >= LINE_BYTES:
            self._line(self._rest[:LINE_BYTES])
            self._rest = self._rest[LINE_BYTES:]
        return len(data)

    def flush(self) -> None:
        """As files do; what is less than a line waits for the end."""

    def _line(self, data: bytes) -> None:
        self._log.write(PIECE.encode() + base64.b64encode(data) + b"\n")

    def end(self) -> None:
        """The last piece, and the line by which a reader knows that it has all."""
        if self._rest:
            self._line(self._rest)
        self._log.write(f"{END}{self.size} {self._digest.hexdigest()}\n".encode())
        self._log.flush()


def send(out: Path, artifacts: tuple[str, ...], log: BinaryIO, most_bytes: int = MOST_BYTES) -> None:
    """Write files of OUT into a log: a tar archive, compressed, in lines. Files may be replaced meanwhile; each is sent
    as it was at one moment.

    Raises:
        QrayError: there is nothing to send, or more than a log may hold.
    """
    files = files_of(out, artifacts)
    size = sum(path.stat().st_size for path in files if path.exists())
    if size > most_bytes:
        raise QrayError(
            f"what was asked for of {out} on the head are {size / 2**30:.1f} GB, and at most "
            f"{most_bytes / 2**30:.1f} GB go through the dashboard; ask for fewer artifacts, or copy the folder "
            "(`ray rsync-down`)"
        )
    lines = Lines(log)
    # Numbers and pictures hardly shrink; what does, JSON and HTML, does so at the lowest level too.
    with (
        gzip.GzipFile(fileobj=lines, mode="wb", compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        for path in files:
            # It may be no more.
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                entry = tarfile.TarInfo(path.relative_to(out).as_posix())
                status = os.fstat(file.fileno())
                entry.size, entry.mtime = status.st_size, int(status.st_mtime)
                archive.addfile(entry, file)
    lines.end()


def main() -> None:
    """Send OUT (the first argument), with the artifacts of the variants that the others name; then wait to be ended."""
    ended = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.append(True))
    try:
        send(Path(sys.argv[1]).expanduser(), tuple(sys.argv[2:]), sys.stdout.buffer)
    except (QrayError, OSError) as error:
        sys.exit(f"error: {error}")
    began = time.monotonic()
    while not ended and time.monotonic() - began < KEEP_S:
        time.sleep(0.1)
    # The job's own log, which would lie on the head until its Ray ends.
    os.ftruncate(sys.stdout.fileno(), 0)


if __name__ == "__main__":
    main()
