"""A place in an object store, by its URI; what goes wrong there is a sentence."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from qray.errors import QrayError, UsageError
from qray.reasons import reason_of
from qray.storage.connect import SAME, connect, endpoint_of_environment

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

T = TypeVar("T")
#: What may stand behind the ? of a URI: where the store is, and never who asks.
QUERIES = {
    "s3": ("endpoint_override", "region", "scheme"),
    "gs": ("endpoint_override", "scheme", "project_id"),
    "abfs": ("enable_tls", "blob_storage_authority", "dfs_storage_authority", "blob_storage_scheme",
             "dfs_storage_scheme"),
}  # fmt: skip
#: Where each kind of store finds out who asks.
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (AWS_PROFILE), or the machine's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account",
    "abfs": "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, `az login`, or the machine's identity",
}
#: Seconds for which what a store may do better a moment later is tried again.
RETRY_S = 60.0
#: Files travel in pieces of this size, of which a few are in memory at a time.
CHUNK_BYTES = 8 * 2**20
#: What the libraries of the stores say where there is no bucket, where it is closed to us, and where it is too busy, or
#: out of reach.
_NO_BUCKET = "NO_SUCH_BUCKET|bucket does not exist|ContainerNotFound"
_DENIED = (
    "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|INVALID_CLIENT_TOKEN|HTTP (?:response code:|status) 40[13]|"
    "PERMISSION_DENIED|OAuth2 access token|AuthenticationException|UNAUTHENTICATED|AuthorizationFailure"
)
_PASSING = (
    "NETWORK_CONNECTION|curl|UNAVAILABLE|TransportException|timed? ?out|SLOW_DOWN|INTERNAL_FAILURE|"
    "HTTP (?:response code:|status) 5"
)
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


class StorageError(QrayError):
    """An object store did not do what it was asked for. passing: it may, if it is asked again."""

    def __init__(self, message: str, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


def is_uri(text: str | Path) -> bool:
    """Whether a text names a place by its URI; the others are paths."""
    return isinstance(text, str) and _URI.match(text) is not None


def place_of(text: str | Path, option: str = "URI") -> Path | Place:
    """What a user names: a local path (also by a file:// URI), or a place in an object store.

    Raises:
        UsageError: a URI that is none, of a store that is not known, or with credentials in it.
    """
    if not is_uri(text):
        return Path(text)
    assert isinstance(text, str)
    said = _without_secrets(text)
    try:
        parts = urlsplit(text)
        scheme = SAME.get(parts.scheme, parts.scheme)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise UsageError(f"{option} {said!r}: no URI ({error})") from None
    if scheme != "file" and scheme not in QUERIES:
        raise UsageError(f"{option} {said!r}: {parts.scheme}:// is not known here; use a folder, or a URI of "
                         "s3, gs, abfs or file")  # fmt: skip
    if parts.fragment:
        raise UsageError(f"{option} {said!r}: # does not belong into a URI; a name that has one is written with %23")
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or parts.query or not parts.path.startswith("/"):
            raise UsageError(f"{option} {said!r}: expected file:///ABSOLUTE/PATH of this machine")
        return Path(unquote(parts.path))
    if not parts.netloc:
        raise UsageError(f"{option} {said!r}: it names no bucket; expected {parts.scheme}://BUCKET/PATH")
    user, at, _ = parts.netloc.rpartition("@")
    # Before the @ of abfs stands the container.
    if ":" in user or (at and scheme == "s3") or (at and scheme == "gs" and user != "anonymous"):
        raise UsageError(
            f"{option} {said!r}: credentials do not belong into a URI, which is written into files; they are taken "
            f"from the environment: {CREDENTIALS[scheme]}"
        )
    for name in query:
        if name not in QUERIES[scheme]:
            raise UsageError(f"{option} {said!r}: {name!r} is no setting of {parts.scheme}://; those are "
                             f"{', '.join(QUERIES[scheme])}")  # fmt: skip
    path = "/".join(part for part in unquote(parts.path).split("/") if part)
    if {".", ".."} & set(path.split("/")):
        raise UsageError(f"{option} {said!r}: . and .. are no folders of an object store")
    return Place(parts.scheme, parts.netloc, path, tuple(sorted(query.items())))


def _without_secrets(text: str) -> str:
    """A URI that may be shown: nothing of what stands before an @ but its first word, and no unknown settings."""
    text = re.sub(r"//([^/@:]*):[^/]*@", r"//\1:...@", text)
    known = {name for names in QUERIES.values() for name in names}
    return re.sub(r"([?&])([^=&]+)=[^&]*", lambda m: m[0] if m[2] in known else f"{m[1]}{m[2]}=...", text)


@dataclass(frozen=True)
class Stat:
    """Of one object: its size, and when it was last written (nanoseconds; the store's clock)."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Place:
    """An object, or all those whose names begin with it and a slash, as a path is a file or a folder.

    path: within the bucket, without slashes at its ends. query: settings of the store, as in the URI.
    """

    scheme: str
    authority: str
    path: str
    query: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        query = f"?{urlencode(self.query, safe=':/')}" if self.query else ""
        # What is readable stays so; what a URI has another use for is quoted.
        path = quote(self.path, safe="/ !$'()*+,;=:@~&")
        return f"{self.scheme}://{self.authority}/{path}".rstrip("/") + query

    def __truediv__(self, name: str) -> Place:
        inner = "/".join(part for part in (*self.path.split("/"), *name.split("/")) if part not in ("", "."))
        return Place(self.scheme, self.authority, inner, self.query)

    @property
    def name(self) -> str:
        """Its last part, or the bucket's name."""
        return self.path.rpartition("/")[2] or self.authority

    @property
    def _at(self) -> tuple[FileSystem, str]:
        fs, root = connect(self.scheme, self.authority, self.query)
        return fs, "/".join(part for part in (root, self.path) if part)

    def _asked(self, what: Callable[[FileSystem, str], T], retry_s: float = RETRY_S) -> T:
        """Do something with the file system and the name there, again for a while where that may help.

        Raises:
            FileNotFoundError: there is no such object. StorageError: anything else.
        """
        deadline, pause = time.monotonic() + retry_s, 0.5
        while True:
            try:
                return what(*self._at)
            except (FileNotFoundError, UsageError):
                raise
            except Exception as error:
                fault = self._fault(error)
                if not fault.passing or time.monotonic() + pause > deadline:
                    raise fault from None
            time.sleep(pause)
            pause *= 2

    def _fault(self, error: Exception) -> StorageError:
        if isinstance(error, StorageError):
            return error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageError(f"{self}: there is no room for it on this machine's disk ({os.strerror(error.errno)})")
        # What the number of the request was helps nobody here.
        text = re.sub(r" \(Request ID: [^)]*\)", "", str(error))
        if re.search(_NO_BUCKET, text):
            return StorageError(f"{self}: there is no bucket {self.authority!r}; make it, or name another")
        if re.search(_DENIED, text):
            kind = SAME.get(self.scheme, self.scheme)
            return StorageError(
                f"{self}: access is denied: the credentials that the environment gives do not allow it, or there are "
                f"none ({CREDENTIALS[kind]})"
            )
        if re.search(_PASSING, text, re.IGNORECASE):
            # The library's own words, less which request it was.
            why = reason_of(text.partition("Details: ")[2] or text)
            return StorageError(f"{self}: {self._endpoint} does not answer ({why})", passing=True)
        return StorageError(f"{self}: {reason_of(text)}")

    @property
    def _endpoint(self) -> str:
        return dict(self.query).get("endpoint_override") or endpoint_of_environment() or f"{self.scheme} storage"

    def check(self) -> None:
        """Find out whether the store answers, lets us in and has the bucket, before anything relies on it.

        Raises:
            StorageError: it does not.
        """
        from pyarrow.fs import FileType

        bucket = Place(self.scheme, self.authority, "", self.query)
        found = bucket._asked(lambda fs, root: fs.get_file_info(root) if root else None, 0)
        if found is not None and found.type == FileType.NotFound:
            raise StorageError(f"{self}: there is no bucket {self.authority!r}; make it, or name another")
        self.files(retry_s=0)

    def files(self, retry_s: float = RETRY_S) -> dict[str, Stat]:
        """The objects below, by their names as seen from here."""
        from pyarrow.fs import FileSelector, FileType

        def listed(fs: FileSystem, path: str) -> dict[str, Stat]:
            found = fs.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
            base = len(path) + 1
            return {
                one.path[base:]: Stat(one.size, one.mtime_ns or 0)
                for one in found if one.type == FileType.File and not one.path.endswith("/")
            }  # fmt: skip

        return self._asked(listed, retry_s)

    def stat(self, retry_s: float = RETRY_S) -> Stat | None:
        """The object's facts; None where there is none."""
        from pyarrow.fs import FileType

        one = self._asked(lambda fs, path: fs.get_file_info(path), retry_s)
        return Stat(one.size, one.mtime_ns or 0) if one.type == FileType.File else None

    def read_bytes(self) -> bytes:
        """A small object.

        Raises:
            FileNotFoundError, StorageError.
        """

        def read(fs: FileSystem, path: str) -> bytes:
            with fs.open_input_file(path) as file:
                return bytes(file.read())

        return self._asked(read)

    def write_bytes(self, content: bytes) -> None:
        """Write a small object, whole or not at all."""

        def write(fs: FileSystem, path: str) -> None:
            with fs.open_output_stream(path) as stream:
                stream.write(content)

        self._asked(write)

    def fetch(self, to: Path) -> None:
        """Write the object to a local file, piece by piece.

        Raises:
            FileNotFoundError: there is no such object. StorageError. OSError: the local file cannot be written.
        """
        from pyarrow.fs import LocalFileSystem, copy_files

        self._asked(
            lambda fs, path: copy_files(
                path, str(to), source_filesystem=fs, destination_filesystem=LocalFileSystem(), chunk_size=CHUNK_BYTES,
                use_threads=False,
            )
        )  # fmt: skip

    def put(self, source: Path, retry_s: float = RETRY_S) -> Stat:
        """Make a local file an object, piece by piece; it appears when it is whole.

        Raises:
            FileNotFoundError: there is no such file. StorageError.
        """
        size = source.stat().st_size

        def write(fs: FileSystem, path: str) -> None:
            # Not the library's own copying, which says nothing of what goes wrong at the end.
            with source.open("rb") as file, fs.open_output_stream(path) as stream:
                while piece := file.read(CHUNK_BYTES):
                    stream.write(piece)

        self._asked(write, retry_s)
        there = self.stat(retry_s)
        # An upload is ended in order even where reading its source failed.
        if there is None or there.size != size:
            raise StorageError(f"{self}: {size} bytes were written and {there.size if there else 0} have come",
                               passing=True)  # fmt: skip
        return there

    def delete(self) -> None:
        """Remove the object; one that is not there is no fault."""
        try:
            self._asked(lambda fs, path: fs.delete_file(path))
        except FileNotFoundError:
            return
