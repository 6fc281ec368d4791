"""Attach to a running Ray or start one, with the checks before; and how a cluster's CPUs are cut into slots."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray

from qray.errors import QrayError
from qray.graph.guard import guarded
from qray.graph.local_ray import start_local_ray
from qray.graph.neighbours import NAMESPACE
from qray.graph.unit import Resources
from qray.measure.host import usable_cpus
from qray.ray_address import check_head, driver_address
from qray.reasons import reason_of
from qray.signals import handle_signals

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
    #: CPUs in a slot, where that is settled: tasks of one run hold the same, however its cluster grows or shrinks.
    settled: float | None = None

    @property
    def slot_cpus(self) -> float:
        """CPUs in a slot: 1, or less on a small machine."""
        return self.settled or min(1.0, self.cpus / SLOTS_AT_LEAST)

    @property
    def holders(self) -> int:
        """How many slots may be held at once."""
        return max(1, math.floor(self.cpus / self.slot_cpus + 1e-6) - 1)

    def options(self, gpu: bool = False) -> dict[str, Any]:
        """Resources of a task that holds a slot, and a GPU where it wants one and the cluster has one."""
        return {"num_cpus": self.slot_cpus, "num_gpus": 1} if gpu and self.gpus >= 1 else {"num_cpus": self.slot_cpus}

    def lacking(self, resources: Resources) -> str | None:
        """What this cluster has too little of for a task that wants all of its slots or none, None where it has."""
        if not resources.whole:
            return None
        wanted = resources.slots
        if resources.gpu and 1 <= self.gpus < wanted:
            return f"{wanted} at once take a GPU each, and this Ray has {self.gpus:g}"
        if wanted > self.holders:
            return (
                f"{wanted} at once and the decoding that feeds them take {wanted + 1} slots of {self.slot_cpus:g} CPU, "
                f"and this Ray has {self.holders + 1} ({self.cpus:g} CPUs)"
            )
        return None


def cluster_slots() -> Slots:
    """The slots of the cluster as it is now."""
    resources = ray.cluster_resources()
    return Slots(cpus=resources.get("CPU", 1.0), gpus=resources.get("GPU", 0.0))


@contextlib.contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[str | None]:
    """A connection to Ray; yields the dashboard's URL, if there is one.

    With RAY_ADDRESS set (also inside a Ray job) this attaches, and leaves that Ray running. Otherwise a local Ray is
    started for the run and ended with it. Names of actors are the session's own, whoever else uses the cluster.

    Raises:
        QrayError: RAY_ADDRESS names a Ray that does not answer, or no local Ray could be started.
    """
    address = driver_address()
    # Ray Data would report each of the run's many small streams.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Workers import NumPy-based engines; a pool of threads in each would fight over the cores.
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
        "namespace": f"{NAMESPACE}{uuid.uuid4().hex[:8]}",
    }
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    with guarded() as note:
        if address is None:
            context = start_local_ray(num_cpus or usable_cpus(), common)
            note()
        else:
            check_head(address)
            try:
                context = ray.init(address=address, **common)
            except (ConnectionError, RuntimeError, TimeoutError) as error:
                raise QrayError(
                    f"cannot attach to Ray at {address}: {reason_of(str(error))}. If it asks for a token, set "
                    "RAY_AUTH_MODE=token and put the cluster's token into RAY_AUTH_TOKEN"
                ) from error
        # ray.init puts a handler of its own in the place of ours, one that aborts.
        handle_signals()
        try:
            url = context.dashboard_url
            yield f"http://{url}" if url else None
        finally:
            ray.shutdown()
