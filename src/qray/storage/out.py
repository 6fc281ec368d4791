"""OUT as a command takes it: a folder, or the working copy on this machine of one in an object store."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qray.atomic import write_text
from qray.errors import UsageError
from qray.escape import call_folder
from qray.locks import HELD, out_held
from qray.scratch import scratch_folder
from qray.storage.cache import cache_folder
from qray.storage.lease import Lease
from qray.storage.mirror import STATE, Mirror
from qray.storage.place import Place

#: In a working copy: its name, by which its owner knows an older hold of its own.
COPY = ".copy"
#: What lies in a working copy besides OUT.
OWN = (COPY, STATE)
#: Working copies of this process.
_mirrors: dict[Path, Mirror] = {}


def mirror_of(out: Path) -> Mirror | None:
    """What keeps a folder like a place in an object store, if it is a working copy of one."""
    return _mirrors.get(out)


def working_copy(place: Place, contents: Collection[str] | None) -> Path:
    """The folder from which OUT at a place is written on this machine, the same each time; nothing is in it yet that
    was not there before.

    Raises:
        StorageError: the place does not answer, or there is no such bucket.
    """
    place.check()
    key = hashlib.blake2b(str(place).encode(), digest_size=8).hexdigest()
    return _copy(place, cache_folder() / "out" / f"{place.name}-{key}", contents)


def brought(place: Place, contents: Collection[str] | None, wanted: Callable[[str], bool]) -> Path:
    """A folder with those files of OUT at a place that are wanted, which is gone when this process ends.

    Raises:
        StorageError.
    """
    place.check()
    stack = ExitStack()
    atexit.register(stack.close)
    folder = _copy(place, stack.enter_context(scratch_folder("out")), contents)
    mirror = _mirrors[folder]
    mirror.look()
    mirror.bring(wanted)
    return folder


def _copy(place: Place, folder: Path, contents: Collection[str] | None) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _mirrors[folder] = Mirror(place, folder, contents)
    call_folder(folder, lambda below: str(place / below))
    return folder


def clear(out: Path, mirror: Mirror | None) -> None:
    """Forget what OUT holds, here and at its place.

    Raises:
        UsageError: it is no output of a run.
    """
    from qray.graph.store import CONTENTS

    holds = any(path.name not in (HELD, *OWN) for path in out.iterdir()) or (mirror is not None and mirror.there)
    if holds and not ((out / "study.yaml").is_file() or (mirror is not None and mirror.has("study.yaml"))):
        raise UsageError(f"--fresh: {out} holds no study.yaml, so it is not the output of a run; name another --out")
    if mirror is not None:
        mirror.clear()
    for name in CONTENTS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def make_writable(out: Path) -> None:
    """Make OUT's folder.

    Raises:
        UsageError: it cannot be made, or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Trying is the only proof: a read-only file system, a quota and an owner all look different.
        with tempfile.TemporaryFile(dir=out):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"--out: {out} is not a folder, or lies under a file; name another --out") from None
    except OSError as error:
        raise UsageError(f"--out: {out} cannot be written to ({error.strerror}); name another --out") from None


@contextmanager
def held(out: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Keep OUT to this process; of one at a place, send there what changes until the end.

    Raises:
        QrayError: another has it, which is named; it cannot be written to; or what was finished cannot be sent.
    """
    mirror = mirror_of(out)
    if mirror is None:
        with out_held(out):
            yield
        return
    with ExitStack() as stack:
        stack.enter_context(out_held(out, str(mirror.place)))
        if not (out / COPY).is_file():
            write_text(out / COPY, uuid.uuid4().hex)
        lease = Lease(mirror.place, (out / COPY).read_text(encoding="utf-8"), say)
        lease.take()
        stack.callback(lease.release)
        mirror.begin(lease)
        try:
            yield
        except BaseException:
            # What ended it is what is said; what was finished until then is sent all the same.
            mirror.end(quietly=True)
            raise
        mirror.end()
