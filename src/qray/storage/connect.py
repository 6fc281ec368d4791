"""How the store of a URI is reached. Only this module and `place` import pyarrow.fs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from qray.errors import UsageError
from qray.reasons import reason_of

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

#: Other names of the same kinds of store.
SAME = {"gcs": "gs", "abfss": "abfs"}
#: Seconds until a connection must stand, and of silence after which it counts as broken; and attempts by the library.
CONNECT_S, SILENCE_S, ATTEMPTS = 5.0, 20.0, 3


def endpoint_of_environment() -> str | None:
    """As other clients of S3 read it; Arrow does not."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@lru_cache(maxsize=64)
def connect(scheme: str, authority: str, query: tuple[tuple[str, str], ...]) -> tuple[FileSystem, str]:
    """The file system of a URI, and what stands there before each path: the bucket.

    Raises:
        UsageError: it cannot be one.
    """
    import pyarrow as pa
    from pyarrow import fs

    kind, settings = SAME.get(scheme, scheme), dict(query)
    try:
        if kind == "s3":
            return _s3(authority, settings), authority
        if kind == "gs":
            settings["retry_limit_seconds"] = str(int(SILENCE_S))
        found, root = fs.FileSystem.from_uri(f"{scheme}://{authority}/?{urlencode(settings)}")
        return found, root.strip("/")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise UsageError(f"{scheme}://{authority}: {reason_of(str(error))}") from None


def _s3(bucket: str, settings: Mapping[str, str]) -> FileSystem:
    from pyarrow import fs

    more: dict[str, Any] = dict(settings)
    endpoint = more.get("endpoint_override") or endpoint_of_environment()
    if endpoint:
        more["endpoint_override"] = endpoint
        if "://" in endpoint:
            more["scheme"], _, more["endpoint_override"] = endpoint.rstrip("/").partition("://")
    if "region" not in more and not ({"AWS_REGION", "AWS_DEFAULT_REGION"} & os.environ.keys()):
        more["region"] = "us-east-1" if endpoint else fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        connect_timeout=CONNECT_S, request_timeout=SILENCE_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        # One request for a small object; and no more in memory than the piece that is on its way.
        allow_delayed_open=True, background_writes=False, **more,
    )  # fmt: skip
