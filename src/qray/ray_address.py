"""Addresses of a Ray cluster, as people write them: trimmed, checked, and asked whether anybody is there."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Literal
from urllib.error import HTTPError
from urllib.request import urlopen

from qray.errors import QrayError, UsageError

#: A head answers in milliseconds; a run that waits for one longer than this waits for nobody.
PROBE_TIMEOUT_S = 5.0
#: A call that every Ray head answers, or refuses for want of a token.
GCS_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
HEAD_PORT, DASHBOARD_PORT = 6379, 8265
#: The head declares a machine that fell silent dead within half a minute; who gave it work hears so from gRPC alone,
#: which asks every five minutes and waits for two. All processes that give work are to have these: see cluster.yaml.
NOTICED_SOON = {"RAY_grpc_client_keepalive_time_ms": "30000", "RAY_grpc_client_keepalive_timeout_ms": "30000"}
#: Whether a Ray that is started may have nodes on other machines; on macOS and Windows Ray itself says no. What says no
#: calls its node 127.0.0.1, where all of its processes then listen; else most listen on every address of the machine.
OTHER_NODES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
#: A host name, an IPv4 address, or an IPv6 address in brackets; and a port.
HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]@]+):(?P<port>[0-9]{1,5})")


def _is_host_port(text: str) -> bool:
    found = HOST_PORT.fullmatch(text)
    return found is not None and 0 < int(found["port"]) < 65536


def driver_address() -> str | None:
    """What RAY_ADDRESS says a driver is to attach to: "HOST:PORT" or "auto"; None where a Ray is to be started.

    Blanks and line ends around it are taken away, from the environment too: Ray reads it there for itself.

    Raises:
        QrayError: it is neither.
    """
    given = os.environ.get("RAY_ADDRESS")
    if given is None:
        return None
    address = given.strip()
    if address in ("", "local"):
        del os.environ["RAY_ADDRESS"]
        return None
    os.environ["RAY_ADDRESS"] = address
    if address == "auto" or _is_host_port(address):
        return address
    wanted = f"expected HOST:PORT of the cluster's head, as in {_host(address)}:{HEAD_PORT}"
    if address.startswith(("http://", "https://")):
        raise QrayError(f"RAY_ADDRESS is {address!r}, a dashboard's address, which is for `qray submit`; {wanted}")
    if address.startswith("ray://"):
        raise QrayError(
            f"RAY_ADDRESS is {address!r}, Ray Client's address, which carries none of qray's streams; {wanted}, from a "
            "machine of the cluster's network, or send the run there with `qray submit`"
        )
    raise QrayError(f"RAY_ADDRESS is {address!r}; {wanted}; or 'auto', or unset it to let qray start its own Ray")


def prepare_environment() -> None:
    """Have Ray notice soon that a machine fell silent, and one that qray starts for itself be within reach of this
    machine alone. To be called before ray is imported, which is when Ray reads its environment.

    Raises:
        QrayError: RAY_ADDRESS is no address.
    """
    for name, value in NOTICED_SOON.items():
        os.environ.setdefault(name, value)
    if driver_address() is None:
        os.environ.setdefault(OTHER_NODES, "0")


def _host(address: str) -> str:
    """The host that a malformed address seems to mean."""
    rest = address.partition("://")[2] or address
    return re.split(r"[\s/:]", rest.strip("/"), maxsplit=1)[0] or "10.0.0.9"


def dashboard_address(given: str) -> str:
    """`--address` of `qray submit` as "http://HOST:PORT"; the scheme may be left out.

    Raises:
        UsageError: it is no such address.
    """
    address = given.strip().rstrip("/")
    scheme, separator, rest = address.rpartition("://")
    if (scheme or "http") in ("http", "https") and (_is_host_port(rest) or (scheme == "https" and rest)):
        return address if separator else f"http://{address}"
    raise UsageError(
        f"--address is {given!r}; expected http://HOST:PORT of the cluster's dashboard, as in "
        f"http://{_host(address)}:{DASHBOARD_PORT}"
    )


Answer = Literal["yes", "token"]


@cache
def ask_head(address: str) -> Answer | str:
    """Whether a Ray head answers at "HOST:PORT": "yes", "token" if it asks for one, or else why there is none.

    Asked once a process; takes no longer than PROBE_TIMEOUT_S, whatever name resolution and firewalls do.
    """
    import grpc

    # As Ray itself does: a proxy for web pages knows no cluster.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(GCS_CALL, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=PROBE_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return "token"
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"no answer in {PROBE_TIMEOUT_S:.0f} s"
            # gRPC tells of every attempt; the last words are the system's.
            return str(error.details()).rpartition("last error: ")[2].rpartition("connect: ")[2]
    return "yes"


def check_head(address: str) -> None:
    """Fail fast where no Ray head answers: `ray.init` alone retries for minutes.

    Raises:
        QrayError: nobody is there, or nobody who speaks as a Ray head does.
    """
    # A cluster with certificates of its own answers only to Ray.
    if address == "auto" or os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    answer = ask_head(address)
    if answer not in ("yes", "token"):
        raise QrayError(
            f"RAY_ADDRESS is {address}, but no Ray head answers there ({answer}); start one there (`ray start --head`) "
            "or unset RAY_ADDRESS to let qray start its own"
        )


def ask_dashboard(address: str) -> Answer | str:
    """Whether a dashboard answers at "http://HOST:PORT" now; as `ask_head`."""
    try:
        urlopen(f"{address}/api/version", timeout=PROBE_TIMEOUT_S).close()
    except HTTPError as error:
        return "token" if error.code in (401, 403) else f"HTTP status {error.code}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    except Exception as error:
        # What is there does not speak HTTP: a head's own port, for example.
        return f"no web server: {type(error).__name__}"
    return "yes"
