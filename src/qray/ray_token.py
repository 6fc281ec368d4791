"""Ray's token authentication, for those who attach: Ray itself looks for a token only where it starts a cluster."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

PROBE_TIMEOUT_S = 5.0
#: A call that every Ray head answers, or refuses for want of a token.
GCS_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"


def use_token_if_asked(address: str | None) -> None:
    """Send this user's token to a cluster that asks for one, unless RAY_AUTH_MODE says otherwise.

    A local Ray writes ~/.ray/auth_token; every `ray start --head` after that asks for it, while `ray.init(address=...)`
    and the job client send none until RAY_AUTH_MODE is `token`. A driver in that mode also asks for tokens itself, so
    that it would never hear from a cluster without: hence the question first. Must be called before ray is imported,
    which is when Ray reads its environment.

    address: "HOST:PORT" of a head, or "http://..." of a dashboard; anything else is left to Ray.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or path.is_file()
    if address and has_token and "RAY_AUTH_MODE" not in os.environ and _asks_for_token(address):
        os.environ["RAY_AUTH_MODE"] = "token"


def _asks_for_token(address: str) -> bool:
    if address.startswith(("http://", "https://")):
        try:
            urlopen(f"{address.rstrip('/')}/api/version", timeout=PROBE_TIMEOUT_S).close()
        except HTTPError as error:
            return error.code in (401, 403)
        except OSError:
            return False
        return False
    import grpc

    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(GCS_CALL, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=PROBE_TIMEOUT_S)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False
