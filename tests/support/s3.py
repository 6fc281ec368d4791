"""A real server that speaks S3, on loopback, in a process of its own: kill -9 of a client, and of it, are real too."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from support.runs import END_TIMEOUT_S, free_port, wait_until

from qray.storage.place import Place, place_of

#: What its clients' environment holds; no URI does.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "anybody",
    "AWS_SECRET_ACCESS_KEY": "qray-test-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}
BUCKET = "bucket"
#: In small pieces, as the network brings them.
PROGRAM = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"


@dataclass(frozen=True)
class Server:
    """Where it listens."""

    port: int

    def uri(self, path: str, bucket: str = BUCKET) -> str:
        """The URI of what lies there, as a user writes it."""
        return f"s3://{bucket}/{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def place(self, path: str) -> Place:
        """The same."""
        place = place_of(self.uri(path))
        assert isinstance(place, Place)
        return place

    def upload(self, folder: Path, path: str) -> str:
        """Put a folder there; its URI."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                (self.place(path) / file.relative_to(folder).as_posix()).put(file)
        return self.uri(path)

    def names(self, path: str) -> set[str]:
        """Names of what lies below."""
        return set(self.place(path).files())


@contextmanager
def serving(**changes: str) -> Iterator[Server]:
    """A server with an empty bucket, and this process as one of its clients. changes: of the server's environment."""
    server = Server(free_port())
    with tempfile.TemporaryFile() as log, patch.dict(os.environ, CREDENTIALS):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(server.port)], stdout=log, stderr=log, env=os.environ | changes
        )
        try:
            url = f"http://127.0.0.1:{server.port}"
            wait_until(lambda: process.poll() is not None or _answers(url), "the S3 server", END_TIMEOUT_S)
            make = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
            urllib.request.urlopen(make, timeout=END_TIMEOUT_S)
            yield server
        finally:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/moto-api/", timeout=1)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def client(cache: Path, **changes: str) -> Mapping[str, str]:
    """What a client's environment has besides: who asks, and a folder for what it keeps."""
    return CREDENTIALS | {"QRAY_CACHE": str(cache)} | changes
