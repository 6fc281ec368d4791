"""A Ray that qray starts for itself is this machine's own: nothing of it listens where another host could reach it."""

from __future__ import annotations

import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest
from support.hosts import lay
from support.runs import END_TIMEOUT_S, environment

from qray.ray_address import ask_head

#: As a run does, before and after it imports Ray; its processes are up when a task of it was done.
SESSION = """
from qray.ray_address import prepare_environment
prepare_environment()
import ray
from qray.graph.session import ray_session
with ray_session(1) as url:
    ray.get(ray.remote(lambda: 0).remote())
    print(url, ray.get_runtime_context().gcs_address, flush=True)
    input()
"""


@dataclass(frozen=True)
class Session:
    """A Ray as a run starts it: what it says of itself, and (host, port) of all that listens, by process."""

    dashboard: str
    head: str
    listening: dict[str, set[tuple[str, int]]]

    @property
    def ports(self) -> list[int]:
        """All of them."""
        return sorted({port for places in self.listening.values() for _, port in places})


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    process = subprocess.Popen(
        [sys.executable, "-c", SESSION], env=environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        dashboard, head = process.stdout.readline().split()
        listening: dict[str, set[tuple[str, int]]] = {}
        for one in (own := psutil.Process(process.pid), *own.children(recursive=True)):
            found = {(str(c.laddr.ip), int(c.laddr.port)) for c in one.net_connections("inet") if c.status == "LISTEN"}
            listening[f"{one.name()} {one.pid}"] = found
        yield Session(dashboard, head, listening)
        process.communicate("\n", timeout=END_TIMEOUT_S)
    finally:
        process.kill()
        process.wait(END_TIMEOUT_S)


def test_every_port_of_a_run_of_ones_own_listens_on_loopback(session: Session) -> None:
    # The driver, the head's services, the raylet, the dashboard with its agents, a worker.
    assert len(session.ports) >= 6
    outside = {
        name: places for name, found in session.listening.items()
        if (places := {(host, port) for host, port in found if not _is_loopback(host)})
    }  # fmt: skip
    assert outside == {}


def _is_loopback(host: str) -> bool:
    address = ip_address(host)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def test_jobs_are_taken_from_nobody_without_the_token(session: Session) -> None:
    for path in ("/api/jobs/", "/api/version", "/nodes?view=summary"):
        with pytest.raises(HTTPError) as refused:
            urlopen(f"{session.dashboard}{path}", timeout=10)
        assert refused.value.code == 401, path
    assert ask_head(session.head) == "token"


@pytest.fixture
def other_host() -> Iterator[tuple[str, str]]:
    """(its name, this machine's address as it sees it): a network of its own, with a wire to this one."""
    name = f"qr{uuid.uuid4().hex[:6]}"
    lay([f"ip netns add {name}"])
    try:
        lay([
            f"ip link add {name} type veth peer name {name}p netns {name}",
            f"ip addr add 198.51.100.1/30 dev {name}", f"ip link set {name} up",
            f"ip -n {name} addr add 198.51.100.2/30 dev {name}p", f"ip -n {name} link set {name}p up",
        ])  # fmt: skip
        yield name, "198.51.100.1"
    finally:
        subprocess.run(("ip", "link", "del", name), capture_output=True)
        subprocess.run(("ip", "netns", "del", name), capture_output=True)


def _answering(host: str, address: str, ports: Sequence[int]) -> list[int]:
    """Those ports that take a connection from another host."""
    script = (
        "import socket, sys\nfor port in sys.argv[2:]:\n with socket.socket() as s:\n  s.settimeout(2)\n"
        "  print(port) if s.connect_ex((sys.argv[1], int(port))) == 0 else None"
    )
    command = ["ip", "netns", "exec", host, sys.executable, "-c", script, address, *map(str, ports)]
    return [int(line) for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


def test_another_host_reaches_nothing_of_a_run(session: Session, other_host: tuple[str, str]) -> None:
    with closing(socket.create_server(("0.0.0.0", 0))) as open_to_all:
        port = open_to_all.getsockname()[1]
        assert _answering(*other_host, [port, *session.ports]) == [port]
