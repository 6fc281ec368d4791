"""`qray jobs fetch`: what a run left on the head, brought here through the dashboard's port."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import shlex
import shutil
import tarfile
from collections import deque
from pathlib import Path
from typing import BinaryIO

from qray.atomic import atomic_path, write_json
from qray.errors import QrayError, UsageError
from qray.escape import command, visible
from qray.jobs.client import KIND, OUT, JobClient
from qray.jobs.send import END, PIECE
from qray.jobs.submit import new_name, stage_package
from qray.scratch import scratch_folder

#: In a folder that was fetched: from where. Only such a folder is ever replaced.
FETCHED = "fetched.json"
#: Lines of the job that are kept to say what went wrong.
LAST_LINES = 5
ENDED_TIMEOUT_S = 60.0


class Pieces:
    """Puts together in a file what `send` wrote into a log, however that is cut."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._rest, self._digest, self._size = file, "", hashlib.sha256(), 0
        self.words: deque[str] = deque(maxlen=LAST_LINES)
        self.whole = False

    def hear(self, text: str) -> bool:
        """Take more of the log; whether all has come.

        Raises:
            QrayError: what came is not what was sent.
        """
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.startswith(PIECE):
                self._take(line[len(PIECE) :])
            elif line.startswith(END):
                if line != f"{END}{self._size} {self._digest.hexdigest()}":
                    raise QrayError("what came through the dashboard is not what was sent; fetch it again")
                self.whole = True
            elif line:
                self.words.append(line)
        return self.whole

    def _take(self, line: str) -> None:
        try:
            data = base64.b64decode(line, validate=True)
        except binascii.Error:
            raise QrayError("what came through the dashboard is damaged; fetch it again") from None
        self._digest.update(data)
        self._size += len(data)
        self._file.write(data)


def check_destination(folder: Path, source: dict[str, str]) -> None:
    """Refuse to replace what was not fetched from the same place.

    Raises:
        UsageError: the folder holds something else.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if not folder.exists():
        return
    try:
        of = json.loads((folder / FETCHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"--to: {folder} is there and was not fetched; name another folder") from None
    if of != source:
        raise UsageError(f"--to: {folder} was fetched from another run ({visible(str(of))}); name another folder")


def fetch(client: JobClient, job: str, to: Path | None, artifacts: tuple[str, ...]) -> Path:
    """Bring what `SENT` names of a job's OUT, and artifacts, into a folder; return it. It appears whole or not at all.

    Raises:
        QrayError: the job wrote nowhere, there is nothing yet, or it did not come through.
    """
    found = client.find(job)
    source = {"job": job, "out": (found.metadata or {}).get(OUT, "")}
    if not source["out"]:
        raise QrayError(f"{job} is not a job of `qray submit`, so it is not known where it writes")
    folder = to or Path("runs") / job
    check_destination(folder, source)
    name = new_name("fetch", job.removeprefix("qray-"))
    with scratch_folder("fetch") as scratch:
        package = scratch / "package"
        package.mkdir()
        stage_package(package)
        arguments = ["python", "-m", "qray.jobs.send", source["out"], *artifacts]
        client.start(name, shlex.join(arguments), str(package), {KIND: "fetch", OUT: source["out"]})
        archive = scratch / "archive"
        try:
            _receive(client, name, archive)
        finally:
            client.stop(name)
            if client.wait_for_end(name, ENDED_TIMEOUT_S).status.is_terminal():
                client.forget(name)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            unpack(archive, temporary)
            write_json(temporary / FETCHED, source)
    return folder


def _receive(client: JobClient, name: str, archive: Path) -> None:
    with archive.open("wb") as file:
        pieces = Pieces(file)
        ended = client.follow(name, pieces.hear)
    if not pieces.whole:
        said = [line.removeprefix("error: ") for line in pieces.words if line.startswith("error: ")]
        words = said[0] if said else f"the job that sends it ended as {ended.status.value}: {' / '.join(pieces.words)}"
        raise QrayError(visible(words))


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of an archive into a folder.

    Raises:
        QrayError: it is no archive, or holds anything but files that stay in the folder.
    """
    try:
        with tarfile.open(archive, "r|gz") as entries:
            for entry in entries:
                path = folder / entry.name
                data = entries.extractfile(entry) if entry.isreg() else None
                if data is None or not path.resolve().is_relative_to(folder.resolve()):
                    raise QrayError(f"the cluster sent {visible(entry.name)!r}, which is no file of a run")
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    shutil.copyfileobj(data, file)
    except tarfile.TarError as error:
        raise QrayError(f"what the cluster sent is no archive ({error})") from None


def fetched_words(folder: Path) -> str:
    """What can be done with a folder that was fetched."""
    pick, report = command("qray", "pick", folder), folder / "report.html"
    shown = f"; report: {report}" if report.is_file() else ""
    if not (folder / "results.parquet").is_file():
        return (
            f"fetched into {folder}: the run has not written its table yet; `{command('qray', 'run', 'table', folder)}`"
        )
    return f"fetched into {folder}; `{pick}` says what to ship{shown}"
