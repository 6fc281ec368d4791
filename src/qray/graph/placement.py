"""Which nodes of a cluster can run what: an artifact goes only where it computes what it was built for."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qray.errors import NotYet, QrayError, Unavailable
from qray.measure.host import gpu_name, provenance_here
from qray.measure.isa import Machine, capabilities, least_of

#: A node that is busy takes long to start a process.
PROBE_TIMEOUT_S = 180.0
#: How long the first node may take to come of a cluster that has none yet: machines start, and install, in minutes.
FIRST_NODE_S = 1200.0
LOOK_EVERY_S, SAY_EVERY_S = 2.0, 60.0
#: What a node has one of that is kept for measuring; it has no CPU then that other work could ask for.
QUIET = "qray_quiet"
#: What a node that is always there, the head, has where the cluster starts a quiet node when one is asked for.
QUIET_ON_DEMAND = "qray_quiet_on_demand"
#: The same for nodes that work runs on: how many CPUs and GPUs the cluster may have in all. Ray says to nobody what its
#: autoscaler may start.
CPUS_ON_DEMAND, GPUS_ON_DEMAND = "qray_cpus_on_demand", "qray_gpus_on_demand"


#: Begins what says in a node's capabilities which GPU it has.
GPU = "the GPU "


def whereabouts() -> dict[str, Any]:
    """The node that this task runs on, its host, and the versions there, for the record of what ran where."""
    return {"node": ray.get_runtime_context().get_node_id(), **provenance_here()}


@ray.remote(num_cpus=0)
def _capabilities() -> frozenset[str]:
    gpu = gpu_name()
    return capabilities() | ({f"{GPU}{gpu}"} if gpu else set())


@ray.remote(num_cpus=0, max_retries=0)
def _nothing() -> None:
    """What asks for room."""


@dataclass
class Placement:
    """Nodes that work may be placed on, and those kept for measuring, by id, with the `capabilities` of their CPUs.

    Follows a cluster that grows and shrinks: `look`. A quiet node that has gone is remembered: another of its type may
    come. cpus_on_demand, gpus_on_demand: how many the cluster may have in all, where it starts nodes when they are
    asked for; else 0.
    """

    nodes: dict[str, frozenset[str]] = field(default_factory=dict)
    quiet: dict[str, frozenset[str]] = field(default_factory=dict)
    quiet_on_demand: bool = False
    cpus_on_demand: float = 0
    gpus_on_demand: float = 0
    #: CPUs of the largest node without a GPU that has been seen, else of the largest.
    largest: float = 1
    _asked: dict[str, Any] = field(default_factory=dict)
    _wishes: list[Any] = field(default_factory=list)
    _looked: float = -LOOK_EVERY_S
    _turn: Iterator[int] = field(default_factory=itertools.count)

    def look(self) -> None:
        """Forget the nodes that have gone, ask those that have come what they can do, and take what others answer.
        Never waits; looks every few seconds at most."""
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked, having = time.monotonic(), _alive()
        on_demand = {name: sum(has.get(name, 0) for has in having.values()) for name in _ON_DEMAND}
        self.quiet_on_demand = on_demand[QUIET_ON_DEMAND] > 0
        self.cpus_on_demand, self.gpus_on_demand = on_demand[CPUS_ON_DEMAND], on_demand[GPUS_ON_DEMAND]
        for known in (self.nodes, self._asked):
            for gone in known.keys() - having.keys():
                del known[gone]
        working = {node: has for node, has in having.items() if has.get("CPU", 0) > 0}
        for node in having.keys() - self.nodes.keys() - self.quiet.keys() - self._asked.keys():
            if node in working or QUIET in having[node]:
                options = {"name": "look at a CPU", "scheduling_strategy": on_node(node)}
                self._asked[node] = _capabilities.options(**options).remote()
        plain = [has["CPU"] for has in working.values() if not has.get("GPU")]
        self.largest = max(plain or [has["CPU"] for has in working.values()], default=self.largest)
        self._hear(having)

    def _hear(self, having: Mapping[str, Any]) -> None:
        for node in [node for node, asked in self._asked.items() if ray.wait([asked], timeout=0)[0]]:
            try:
                has = ray.get(self._asked.pop(node))
            except RayError:
                # It has gone, or will be asked again.
                continue
            (self.quiet if QUIET in having[node] else self.nodes)[node] = has

    @property
    def asking(self) -> bool:
        """Whether a node has not said yet what it can do."""
        return bool(self._asked)

    @property
    def grows(self) -> bool:
        """Whether the cluster starts nodes that work runs on."""
        return self.cpus_on_demand > 0

    def want(self, cpus: float) -> None:
        """Have the autoscaler start nodes for so many CPUs more, or none any more.

        It starts what waiting tasks ask for, and a run leaves none waiting: it starts no more than there are slots for.
        So tasks that do nothing ask for a whole node each, which waits as long as every node has something to do.
        """
        self._wishes = [wish for wish in self._wishes if not ray.wait([wish], timeout=0)[0]]
        room = max(0.0, self.cpus_on_demand - ray.cluster_resources().get("CPU", 0.0))
        wanted = math.ceil(min(cpus, room) / self.largest)
        while len(self._wishes) > wanted:
            ray.cancel(self._wishes.pop())
        while len(self._wishes) < wanted:
            self._wishes.append(_nothing.options(num_cpus=self.largest, name="room for more").remote())

    def machine(self) -> Machine:
        """The least of the nodes without a GPU, where builds and evaluations belong; of all where each has one.

        On a cluster that starts nodes on demand it must not hang on which are there just now.
        """
        having = _alive()
        plain = [has for node, has in self.nodes.items() if not having.get(node, {}).get("GPU")]
        return least_of(plain or self.nodes.values(), self.gpus() >= 1, self.gpu_name())

    def gpus(self) -> float:
        """GPUs that the cluster has, or may have."""
        return max(ray.cluster_resources().get("GPU", 0.0), self.gpus_on_demand)

    def gpu_name(self) -> str | None:
        """Which GPU rows on one are of: the first by name, where nodes have different ones; None where none says."""
        names = {word.removeprefix(GPU) for has in self.nodes.values() for word in has if word.startswith(GPU)}
        return min(names, default=None)

    def able(self, needs: Collection[str], gpu: bool = False) -> list[str]:
        """Nodes whose CPU has all of `needs`, by id; with `gpu`, of those that have one, the one of `gpu_name`.

        Raises:
            Unavailable: there is none. NotYet: nor is it known that none will come.
        """
        if gpu and self.gpus() < 1:
            raise Unavailable("no machine of this Ray has an NVIDIA GPU")
        having, name = _alive() if gpu else {}, self.gpu_name() if gpu else None
        needs = {*needs, f"{GPU}{name}"} if name else needs
        able = [node for node, has in self.nodes.items()
                if has.issuperset(needs) and (not gpu or having.get(node, {}).get("GPU"))]  # fmt: skip
        if not able:
            wanted = f"has {' and '.join(sorted(needs))}" if needs else "that runs work is there"
            wanted = "with a GPU is there" if gpu and not needs else wanted
            reason = f"no node of this cluster {wanted}"
            raise NotYet(reason) if self.grows or self.asking else Unavailable(reason)
        return able

    def options(self, needs: Collection[str], gpu: bool = False) -> dict[str, Any]:
        """Options of a task that wants a CPU with all of `needs`, and with `gpu` a GPU: none where every node will do,
        else a node that will, each in its turn.

        Raises:
            Unavailable: no node will. NotYet: none that is there will.
        """
        if not needs and not gpu:
            return {}
        if gpu and self.gpus_on_demand and not ray.cluster_resources().get("GPU"):
            # The task itself is what has the cluster start one.
            return {}
        able = self.able(needs, gpu)
        if len(able) == len(self.nodes) and not self.asking:
            return {}
        node = able[next(self._turn) % len(able)]
        return {"scheduling_strategy": on_node(node)}

    def alone(self, needs: Collection[str], gpu: bool = False) -> dict[str, Any]:
        """Options of a task that measures with all of `needs`, alone on its node: a quiet node, one that the cluster
        starts, or all of another; of these a CPU node before a GPU node, then the one with the most CPUs. With `gpu`: a
        GPU and all CPUs of the node that has it.

        Raises:
            Unavailable: no node that is alive has. NotYet: one that is yet to come may have.
        """
        alive = _alive()
        if gpu:
            able = [node for node in self.able(needs, gpu) if node in alive]
            if not able:
                raise NotYet("no node with a GPU is there") if self.gpus_on_demand else Unavailable("its GPU has gone")
            best = max(able, key=lambda node: (alive[node]["CPU"], node))
            return {"num_cpus": alive[best]["CPU"], "num_gpus": 1, "scheduling_strategy": on_node(best)}
        quiet = sorted(node for node, has in self.quiet.items() if has.issuperset(needs))
        if here := [node for node in quiet if node in alive]:
            return {"num_cpus": 0, "resources": {QUIET: 1}, "scheduling_strategy": on_node(here[0])}
        # What a node that is yet to be started can do is not known, but for those that were there before.
        if self.quiet_on_demand and (quiet or not self.quiet):
            return {"num_cpus": 0, "resources": {QUIET: 1}}
        able = [node for node in self.able(needs) if node in alive]
        if not able:
            reason = "none of the nodes that can measure this is alive"
            raise NotYet(reason) if self.grows else Unavailable(reason)
        best = max(able, key=lambda node: (alive[node].get("GPU", 0) == 0, alive[node]["CPU"], node))
        return {"num_cpus": alive[best]["CPU"], "scheduling_strategy": on_node(best)}


_ON_DEMAND = (QUIET_ON_DEMAND, CPUS_ON_DEMAND, GPUS_ON_DEMAND)


def _alive() -> dict[str, dict[str, float]]:
    """Resources of the nodes that are alive, by id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def on_node(node: str) -> NodeAffinitySchedulingStrategy:
    """On this node and no other."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


def placement(say: Callable[[str], None] = lambda line: None) -> Placement:
    """Ask every node that runs work what its CPU has; where there is none yet, ask the cluster for one.

    Raises:
        QrayError: none came, or one does not answer.
    """
    _wait_for_first_node(say)
    found = Placement()
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    while True:
        found.look()
        if not found.asking:
            return found
        if time.monotonic() > deadline:
            raise QrayError(
                f"{len(found._asked)} nodes of the cluster do not answer: {', '.join(sorted(found._asked))}; the Ray "
                "dashboard lists them"
            )
        ray.wait(list(found._asked.values()), timeout=LOOK_EVERY_S)
        found._looked = -LOOK_EVERY_S


def _wait_for_first_node(say: Callable[[str], None]) -> None:
    if any(has.get("CPU", 0) > 0 for has in _alive().values()):
        return
    # An autoscaler starts what is asked for.
    asked, began = _nothing.options(num_cpus=1, name="the first node").remote(), time.monotonic()
    say(f"no node of the cluster has a CPU yet, so one is asked for; waiting for it at most {FIRST_NODE_S:.0f} s")
    while not ray.wait([asked], timeout=SAY_EVERY_S)[0]:
        waited = time.monotonic() - began
        if waited > FIRST_NODE_S:
            ray.cancel(asked)
            raise QrayError(
                f"no node of the cluster has a CPU, and none came in {waited:.0f} s; `ray status` on the head "
                "says why its autoscaler starts none; or start one: `ray start --address HEAD`"
            )
        say(f"no node has come yet, after {waited:.0f} s")
