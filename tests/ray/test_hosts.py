"""A run on `ray start` of hosts of their own, each in a network namespace; and with one whose wire is pulled out."""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.faults import equals, with_title
from support.hosts import Host, network
from support.runs import RUN_TIMEOUT_S, TINY, Finished, command, environment, units, wait_until

from qray.ray_address import NOTICED_SOON

pytestmark = pytest.mark.slow

WholeRun = Callable[[int], tuple[Path, Finished]]
PORT = 6379
#: A minute and a half, and an epoch. Without NOTICED_SOON it takes seven minutes.
NOTICED_IN_S = 300


@dataclass(frozen=True)
class Hosts:
    """A head that runs nothing, hosts of two CPUs each, and an environment that holds their token."""

    head: Host
    workers: list[Host]
    env: dict[str, str]

    @property
    def address(self) -> str:
        """Of the head."""
        return f"{self.head.address}:{PORT}"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Three hosts, of which each was told `ray start`."""
    token = tmp_path / "auth_token"
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    env = environment(RAY_AUTH_TOKEN_PATH=str(token), RAY_AUTH_MODE="token", **NOTICED_SOON)
    # Short: the path of a socket has at most 107 characters.
    scratch = Path(tempfile.mkdtemp(prefix="r"))
    with network(3) as (head, *workers):
        found = Hosts(head, workers, env)
        ray = [Path(sys.executable).parent / "ray", "start", "--block", "--disable-usage-stats"]
        ray_head = [*ray, "--head", f"--port={PORT}", "--num-cpus=0", f"--temp-dir={scratch}",
                    f"--node-ip-address={head.address}"]  # fmt: skip
        processes = [head.popen(ray_head, env, log := tmp_path / "head")]
        wait_until(lambda: "Ray runtime started" in log.read_text(), f"the head: {log}", 120)
        for worker in workers:
            join = [*ray, f"--address={found.address}", "--num-cpus=2", f"--node-ip-address={worker.address}"]
            processes.append(worker.popen(join, env, log := tmp_path / worker.name))
            wait_until(lambda: "Ray runtime started" in log.read_text(), f"a host: {log}", 120)
        yield found
    for process in processes:
        process.wait(60)
    shutil.rmtree(scratch)


@pytest.mark.parametrize("cut", ["", "that trains", "that does not train"], ids=lambda cut: f"silent: {cut or None}")
def test_a_run_on_hosts_of_their_own_ends_as_on_one(
    cut: str, hosts: Hosts, tiny_dataset: Path, whole_run: WholeRun, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    words = command("run", "all", "--study", TINY, "--data", tiny_dataset, "--out", out)
    run = hosts.head.popen(words, hosts.env | {"RAY_ADDRESS": hosts.address, "PYTHONUNBUFFERED": "1"}, log)
    if cut:
        training = list[Host]()

        def began() -> bool:
            training[:] = [h for h in hosts.workers if any(with_title(p, "ray::train:fp32") for p in h.processes())]
            return bool(training) or run.poll() is not None

        wait_until(began, "a training")
        wait_until(lambda: run.poll() is not None or "epoch 1/3" in log.read_text(), "the first epoch")
        (silent,) = training if cut == "that trains" else [h for h in hosts.workers if h not in training]
        silent.cut()
        wait_until(lambda: run.poll() is not None or "epoch 2/3" in log.read_text(), "the second", NOTICED_IN_S)
    assert run.wait(RUN_TIMEOUT_S) == 0, log.read_text()
    said = log.read_text()
    assert ("lost  train fp32" in said) == (cut == "that trains")
    assert [said.count(f"train fp32: epoch {epoch}/3") for epoch in (1, 2, 3)] == [1, 1, 1], said
    used = {unit["node"] for kind in ("train", "build", "memory") for unit in units(out, kind)}
    assert cut or len(used) == 2
    equals(out, whole_run(2)[0])
