"""OUT in an object store: a working copy on this machine, and what brings the one up to the other.

A unit's files are sent before its record, and an object is there whole or not at all, so that a run that is killed at
any moment goes on from what was finished, on any machine. What was finished and not yet sent is still in the working
copy, from which the next run on this machine sends it.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qray.atomic import UNFINISHED, write_text
from qray.storage.lease import Lease
from qray.storage.place import Place, Stat, StorageError

#: In a working copy: what of it was the same in the store when it was last looked at.
STATE = ".stored.json"
#: Seconds between looks at what has changed, where nobody calls; for which sending is tried again; files at a time.
EVERY_S, RETRY_S, SENDING, BRINGING = 2.0, 300.0, 4, 16


class Mirror:
    """A folder and the place that it is a copy of.

    contents: names in it that belong to OUT, None for all; whatever else is there is left alone. Names that begin with
    a dot are never copied.
    """

    def __init__(self, place: Place, folder: Path, contents: Collection[str] | None) -> None:
        self.place, self.folder, self.contents = place, folder, contents
        #: What the store holds.
        self.there: dict[str, Stat] = {}
        #: Size and time of each file here when it was the same as there.
        self._same: dict[str, Stat] = {}
        self._lease: Lease | None = None
        self._fault: StorageError | None = None
        self._called, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="mirror", daemon=True)

    def look(self) -> None:
        """See what the store holds, and remove from here what is older, or was removed there, by what was known when
        this copy was last written; nothing is brought yet.

        Raises:
            StorageError.
        """
        self.there = {name: stat for name, stat in self.place.files().items() if self._belongs(name)}
        known = self._known()
        for name, here in self._here().items():
            was, is_now = known.get(name), self.there.get(name)
            if was is not None and was[1] == is_now:
                # The same, or newer here: then it will be sent.
                self._same[name] = was[0]
            elif is_now is not None or (was is not None and was[0] == here):
                (self.folder / name).unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Whether the store holds a file, or files of a folder, though they may not be here."""
        return name in self.there or any(file.startswith(f"{name}/") for file in list(self.there))

    def bring(self, wanted: Callable[[str], bool]) -> None:
        """Bring here what the store holds of the files that are wanted, each whole or not at all.

        Raises:
            StorageError.
        """
        names = [name for name in list(self.there) if wanted(name) and not (self.folder / name).exists()]
        if names:
            with ThreadPoolExecutor(min(BRINGING, len(names))) as pool:
                list(pool.map(self._bring, names))
            self._remember()

    def _bring(self, name: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex[:8]}-{path.name}")
        try:
            (self.place / name).fetch(temporary)
            if temporary.stat().st_size != self.there[name].size:
                raise StorageError(f"{self.place / name} was written to while it was read; try again")
            os.utime(temporary, ns=(self.there[name].mtime_ns,) * 2)
            stat = _stat(temporary)
            temporary.replace(path)
            # Only now: what was the same and is not here was removed, and would be removed there.
            self._same[name] = stat
        except FileNotFoundError:
            # Whoever writes there replaced it, or took it away, since it was listed.
            self.there.pop(name, None)
        finally:
            temporary.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove from the store what belongs to OUT; records first, so that nothing is trusted that is half gone."""
        for name in sorted(self.there, key=_order, reverse=True):
            (self.place / name).delete()
        self.there.clear()
        self._same.clear()

    def begin(self, lease: Lease) -> None:
        """Send what changes as it changes, in the background, as long as the lease lasts."""
        self._lease = lease
        self._thread.start()

    def call(self) -> None:
        """Something was finished: look at once."""
        self._called.set()

    def check(self) -> None:
        """Raises StorageError: what is finished cannot be sent, or another run has taken the place over."""
        fault = self._fault or (self._lease.fault if self._lease is not None else None)
        if fault is not None:
            raise StorageError(
                f"{fault}. Nothing is lost: what was finished is kept in {self.folder}{os.sep}, and the same command "
                "on this machine goes on from there"
            )

    def end(self, quietly: bool = False) -> None:
        """Send the rest. quietly: whether it can be or not.

        Raises:
            StorageError: as `check`.
        """
        self._ended.set()
        self._called.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._fault is None:
            self._try()
        if not quietly:
            self.check()

    def _keep(self) -> None:
        while not self._ended.is_set() and self._fault is None:
            self._called.wait(EVERY_S)
            self._called.clear()
            self._try()

    def _try(self) -> None:
        try:
            self.send()
        except StorageError as error:
            self._fault = error

    def send(self) -> None:
        """Bring the store up to what is here: files first, then what says that they are there; then remove there what
        was removed here.

        Raises:
            StorageError.
        """
        if self._lease is not None:
            self._lease.check()
        here = self._here()
        changed = sorted((name for name, stat in here.items() if self._same.get(name) != stat), key=_order)
        gone = [name for name in list(self._same) if name not in here and not (self.folder / name).exists()]
        try:
            with ThreadPoolExecutor(SENDING) as pool:
                for order in sorted({_order(name) for name in changed}):
                    list(pool.map(self._send, [name for name in changed if _order(name) == order]))
            for name in gone:
                (self.place / name).delete()
                self._same.pop(name, None)
                self.there.pop(name, None)
        finally:
            if changed or gone:
                self._remember()

    def _send(self, name: str) -> None:
        path = self.folder / name
        try:
            stat = _stat(path)
            self.there[name] = (self.place / name).put(path, RETRY_S)
        except FileNotFoundError:
            # A newer one is there by now, or none.
            return
        self._same[name] = stat

    def _belongs(self, name: str) -> bool:
        ours = self.contents is None or name.partition("/")[0] in self.contents
        return ours and not any(part.startswith(".") for part in name.split("/"))

    def _here(self) -> dict[str, Stat]:
        """The files here that belong to OUT. Records first: the files of each that is seen are seen too."""
        found: dict[str, Stat] = {}
        tops = self.contents if self.contents is not None else os.listdir(self.folder)
        for top in sorted(tops, key=lambda name: name != "units"):
            path = self.folder / top
            paths = [Path(at, file) for at, _, files in os.walk(path) for file in files] if path.is_dir() else [path]
            for file in paths:
                name = file.relative_to(self.folder).as_posix()
                if self._belongs(name) and file.is_file():
                    found[name] = _stat(file)
        return found

    def _known(self) -> dict[str, tuple[Stat, Stat]]:
        """Of each file what it was here and there when it was the same."""
        try:
            known = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
            return {name: (Stat(*stats[:2]), Stat(*stats[2:])) for name, stats in known.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _remember(self) -> None:
        both = {name: (stat, self.there[name]) for name, stat in self._same.copy().items() if name in self.there}
        known = {n: [a.size, a.mtime_ns, b.size, b.mtime_ns] for n, (a, b) in both.items()}
        write_text(self.folder / STATE, json.dumps(known))


def _order(name: str) -> int:
    """What says that others are finished comes after them."""
    return 1 if name.startswith("units/") or name == "run.json" else 0


def _stat(path: Path) -> Stat:
    stat = path.stat()
    return Stat(stat.st_size, stat.st_mtime_ns)
