"""One writer of an OUT in an object store, as `locks.out_held` has it of a folder.

Every writer has an object of its own below OUT/.held, which it writes first and then lists: of two that ask at the same
time the later sees the earlier, in a store that lists what was written (S3, GCS and Azure do), so that both may give
way, and never both hold. It is renewed while the run lives. Times are the store's own.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qray.errors import QrayError
from qray.escape import command
from qray.locks import HELD
from qray.storage.place import Place, Stat, StorageError

#: Seconds between renewals, and after which a holder that was not renewed counts as dead.
RENEW_S, STALE_S = 10.0, 60.0
#: Seconds between looks at a holder that may be dead.
LOOK_S = 2.0


@dataclass
class _Seen:
    """Another's object: what it says, and when it was last written."""

    name: str
    stat: Stat
    says: dict[str, Any]

    def __str__(self) -> str:
        says = self.says
        try:
            return f"`{says['command']}` (process {says['process']} on {says['host']}, since {says['since']})"
        except KeyError:
            return "another run"


class Lease:
    """The right to write below a place. copy: names the working copy that is written from; whoever has that one's lock
    knows that another holder with the same name is dead."""

    def __init__(self, place: Place, copy: str, say: Callable[[str], None] = lambda text: None) -> None:
        self.place, self.copy, self.say = place, copy, say
        self.fault: StorageError | None = None
        self._token = uuid.uuid4().hex
        self._folder = place / HELD
        self._since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._renewed = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def take(self) -> None:
        """Get it, after waiting for as long as a holder may be dead.

        Raises:
            QrayError: another run has it, which is named.
        """
        first: dict[str, Stat] = {}
        while True:
            self._write("asks")
            others = self._others()
            if others is None:
                raise StorageError(
                    f"{self.place}: what is written there is not listed, so it cannot be kept to one run"
                )
            if not others:
                self._write("holds")
                self._thread.start()
                return
            (self._folder / self._token).delete()
            for other in others:
                if other.says.get("state") == "holds" and first.setdefault(other.name, other.stat) != other.stat:
                    raise QrayError(
                        f"{self.place} is being written to by {other}; wait for its end, or name another --out"
                    )
            if len(first) > 0 and self.say is not _silent:
                self.say(f"{others[0]} holds {self.place}: waiting up to {STALE_S:.0f} s to see whether it is alive")
                self.say = _silent
            time.sleep(LOOK_S * random.uniform(0.5, 1))

    def release(self) -> None:
        """Let others have it."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.fault is None:
            (self._folder / self._token).delete()

    def check(self) -> None:
        """Raises StorageError: another run may have it by now."""
        if self.fault is None and time.time() - self._renewed > 2 * RENEW_S:
            # This machine slept, or the thread was kept from its work.
            self._renew()
        if self.fault is not None:
            raise self.fault

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_S) and self.fault is None:
            self._renew()

    def _renew(self) -> None:
        try:
            others = self._others(remove=False)
            if others is None or any(other.says.get("state") == "holds" for other in others):
                self.fault = StorageError(
                    f"{self.place} was taken over by another run, after nothing had been heard of this one for "
                    f"{STALE_S:.0f} s"
                )
            else:
                self._write("holds")
        except StorageError as error:
            if time.time() - self._renewed > STALE_S:
                self.fault = error

    def _write(self, state: str) -> None:
        words = {
            "state": state, "command": command("qray", *sys.argv[1:]), "process": os.getpid(),
            "host": socket.gethostname(), "since": self._since, "copy": self.copy,
        }  # fmt: skip
        (self._folder / self._token).write_bytes(json.dumps(words).encode())
        self._renewed = time.time()

    def _others(self, remove: bool = True) -> list[_Seen] | None:
        """Other holders, and those who ask, that may be alive, while objects of the dead are removed; None where this
        one's own object is gone."""
        found = self._folder.files()
        mine = found.pop(self._token, None)
        if mine is None:
            return None
        others = []
        for name, stat in found.items():
            says = self._read(name)
            if says is None:
                continue
            dead = says.get("copy") == self.copy or mine.mtime_ns - stat.mtime_ns > STALE_S * 1e9
            if not dead:
                others.append(_Seen(name, stat, says))
            elif remove:
                (self._folder / name).delete()
        return others

    def _read(self, name: str) -> dict[str, Any] | None:
        """What an object says; None where there is none any more. One that is read while it is written anew may be cut
        off: that says nothing, and least of all that nobody has it."""
        try:
            says = json.loads((self._folder / name).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return says if isinstance(says, dict) else {}


def _silent(text: str) -> None:
    """Said once."""
