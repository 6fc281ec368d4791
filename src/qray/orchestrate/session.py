"""Attach to a running Ray or start one, with the checks before; and how a cluster's CPUs are cut into slots."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray

from qray.errors import QrayError
from qray.measure.host import usable_cpus
from qray.signals import handle_sigterm

PROBE_TIMEOUT_S = 5.0
#: A cluster of fewer CPUs than this is cut into fractions of a CPU, so that a training task, an evaluation, a build
#: and the decoding that feeds them can always run together.
SLOTS_AT_LEAST = 4


@dataclass(frozen=True)
class Slots:
    """CPUs as the unit of scheduling.

    Everything that lives long (training, trials, evaluations, builds) holds one slot, and one slot at least is never
    held, because decode tasks need it: a Ray Data pipeline whose consumer holds the last CPU waits for ever.
    """

    cpus: float
    gpus: float

    @property
    def slot_cpus(self) -> float:
        """CPUs in a slot: 1, or less on a small machine."""
        return min(1.0, self.cpus / SLOTS_AT_LEAST)

    @property
    def holders(self) -> int:
        """How many slots may be held at once."""
        return max(1, math.floor(self.cpus / self.slot_cpus + 1e-6) - 1)

    def training_options(self) -> dict[str, Any]:
        """Resources of a training task: a GPU where the cluster has one."""
        return {"num_cpus": self.slot_cpus, "num_gpus": 1} if self.gpus >= 1 else {"num_cpus": self.slot_cpus}


def cluster_slots() -> Slots:
    """The slots of the cluster as it is now."""
    resources = ray.cluster_resources()
    return Slots(cpus=resources.get("CPU", 1.0), gpus=resources.get("GPU", 0.0))


def _probe(address: str) -> None:
    """Fail fast on a dead address: ray.init alone retries for a minute."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S):
            pass
    except OSError as error:
        raise QrayError(
            f"RAY_ADDRESS is {address}, but nothing answers there ({error}); start Ray there (`ray start --head`) "
            "or unset RAY_ADDRESS to let qray start its own"
        ) from None


@contextlib.contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[str | None]:
    """A connection to Ray; yields the dashboard's URL, if there is one.

    With RAY_ADDRESS set (also inside a Ray job) this attaches, and leaves that Ray running. Otherwise a local Ray is
    started for the run and ended with it.

    Raises:
        QrayError: RAY_ADDRESS names a Ray that does not answer, or no local Ray could be started.
    """
    address = os.environ.get("RAY_ADDRESS")
    # Ray Data would report each of the run's many small streams.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Workers import NumPy-based engines; a pool of threads in each would fight over the cores.
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    if address and address != "local":
        if address.startswith(("http://", "https://")):
            raise QrayError(
                f"RAY_ADDRESS is {address}: that is for `ray job submit`; a driver wants HOST:6379 or 'auto'"
            )
        if address != "auto":
            _probe(address)
        try:
            context = ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            raise QrayError(
                f"cannot attach to Ray at {address}: {error}. If it asks for a token, set RAY_AUTH_MODE=token and "
                "put the cluster's token into RAY_AUTH_TOKEN"
            ) from error
    else:
        try:
            context = ray.init(address="local", num_cpus=num_cpus or usable_cpus(), include_dashboard=True, **common)
        except (RuntimeError, TimeoutError, OSError) as error:
            raise QrayError(f"cannot start a local Ray: {error}; `qray doctor` says what this machine lacks") from error
    # ray.init puts a handler of its own in the place of ours, one that aborts.
    handle_sigterm()
    try:
        url = context.dashboard_url
        yield f"http://{url}" if url else None
    finally:
        ray.shutdown()
