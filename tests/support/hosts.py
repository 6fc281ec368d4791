"""Hosts on one machine: each a network namespace with a wire to a switch, as `ip` makes them."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest


@dataclass(frozen=True)
class Host:
    """A host: its namespace, its address, and the switch that its wire ends in."""

    name: str
    address: str
    switch: str

    def popen(self, command: Sequence[object], env: Mapping[str, str], log: Path) -> subprocess.Popen[str]:
        """Start a command there, in a process group of its own; all that it says goes to a file."""
        with log.open("w") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *map(str, command)], env=dict(env), text=True, stdout=out,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """What runs there."""
        told = subprocess.run(("ip", "netns", "pids", self.name), capture_output=True, text=True)
        return [psutil.Process(int(pid)) for pid in told.stdout.split() if psutil.pid_exists(int(pid))]

    def cut(self) -> None:
        """Pull its wire out: nothing is heard of it any more, and it goes on."""
        subprocess.run(("ip", "-n", self.switch, "link", "set", self.name, "down"), check=True)


def lay(commands: Sequence[str]) -> None:
    """Run what makes hosts and wires; the test is skipped where they cannot be made."""
    for command in commands:
        try:
            done = subprocess.run(command.split(), capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("no `ip` to make other hosts with")
        if done.returncode:
            pytest.skip(f"other hosts cannot be made here: {command}: {done.stderr.strip()}")


@contextmanager
def network(number: int) -> Iterator[list[Host]]:
    """So many hosts that reach each other, and nobody else."""
    tag = f"qr{uuid.uuid4().hex[:5]}"
    switch = f"{tag}s"
    hosts = [Host(f"{tag}h{i}", f"198.51.100.{i + 1}", switch) for i in range(number)]
    commands = [f"ip -n {switch} link add bridge type bridge", f"ip -n {switch} link set bridge up"]
    for host in hosts:
        commands += [
            f"ip netns add {host.name}",
            f"ip link add eth0 netns {host.name} type veth peer name {host.name} netns {switch}",
            f"ip -n {switch} link set {host.name} master bridge up",
            f"ip -n {host.name} addr add {host.address}/24 dev eth0",
            f"ip -n {host.name} link set eth0 up", f"ip -n {host.name} link set lo up",
            # Ray asks which address leads out.
            f"ip -n {host.name} route add default dev eth0",
        ]  # fmt: skip
    lay([f"ip netns add {switch}"])
    try:
        lay(commands)
        yield hosts
    finally:
        for host in hosts:
            for process in host.processes():
                os.kill(process.pid, signal.SIGKILL)
            subprocess.run(("ip", "netns", "del", host.name), capture_output=True)
        subprocess.run(("ip", "netns", "del", switch), capture_output=True)
