"""Which nodes of a cluster can run what: an artifact goes only where it computes what it was built for."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qray.errors import Unavailable
from qray.measure.host import provenance_here
from qray.measure.isa import Machine, capabilities, least_of

PROBE_TIMEOUT_S = 60.0
#: What a node has one of that is kept for measuring; it has no CPU then that other work could ask for.
QUIET = "qray_quiet"
#: What a node that is always there, the head, has where the cluster starts a quiet node when one is asked for.
QUIET_ON_DEMAND = "qray_quiet_on_demand"


def whereabouts() -> dict[str, Any]:
    """The node that this task runs on, its host, and the versions there, for the record of what ran where."""
    return {"node": ray.get_runtime_context().get_node_id(), **provenance_here()}


@ray.remote(num_cpus=0)
def _capabilities() -> frozenset[str]:
    return capabilities()


@dataclass(frozen=True)
class Placement:
    """Nodes that work may be placed on, and those kept for measuring, by id, with the `capabilities` of their CPUs."""

    nodes: dict[str, frozenset[str]]
    quiet: dict[str, frozenset[str]] = field(default_factory=dict)
    quiet_on_demand: bool = False
    _turn: Iterator[int] = field(default_factory=itertools.count)

    def machine(self) -> Machine:
        """The least of the nodes."""
        return least_of(self.nodes.values(), gpu=ray.cluster_resources().get("GPU", 0) >= 1)

    def able(self, needs: Collection[str]) -> list[str]:
        """Nodes whose CPU has all of `needs`, by id.

        Raises:
            Unavailable: there is none.
        """
        able = [node for node, has in self.nodes.items() if has.issuperset(needs)]
        if not able:
            raise Unavailable(f"no node of this cluster has {' and '.join(sorted(needs))}")
        return able

    def options(self, needs: Collection[str]) -> dict[str, Any]:
        """Options of a task that wants a CPU with all of `needs`: none where every node will do, else a node that will,
        each in its turn.

        Raises:
            Unavailable: no node will.
        """
        able = self.able(needs)
        if len(able) == len(self.nodes):
            return {}
        node = able[next(self._turn) % len(able)]
        return {"scheduling_strategy": on_node(node)}

    def alone(self, needs: Collection[str]) -> dict[str, Any]:
        """Options of a task that measures with all of `needs`, alone on its node: a quiet node, one that the cluster
        starts, or all of another; of these a CPU node before a GPU node, then the one with the most CPUs.

        Raises:
            Unavailable: no node that is alive has.
        """
        alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        quiet = sorted(node for node, has in self.quiet.items() if has.issuperset(needs))
        if here := [node for node in quiet if node in alive]:
            return {"num_cpus": 0, "resources": {QUIET: 1}, "scheduling_strategy": on_node(here[0])}
        # What a node that is yet to be started can do is not known, but for those that were there before.
        if self.quiet_on_demand and (quiet or not self.quiet):
            return {"num_cpus": 0, "resources": {QUIET: 1}}
        able = [node for node in self.able(needs) if node in alive]
        if not able:
            raise Unavailable("none of the nodes that can measure this is alive")
        best = max(able, key=lambda node: (alive[node].get("GPU", 0) == 0, alive[node]["CPU"], node))
        return {"num_cpus": alive[best]["CPU"], "scheduling_strategy": on_node(best)}


def on_node(node: str) -> NodeAffinitySchedulingStrategy:
    """On this node and no other."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


def placement() -> Placement:
    """Ask every node that runs work what its CPU has.

    Raises:
        ray.exceptions.GetTimeoutError: a node does not answer.
    """
    having = {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"]}
    wanted = [node for node, has in having.items() if has.get("CPU", 0) > 0 or QUIET in has]
    look = _capabilities.options
    asked = [look(name="look at a CPU", scheduling_strategy=on_node(node)).remote() for node in wanted]
    found = dict(zip(wanted, ray.get(asked, timeout=PROBE_TIMEOUT_S), strict=True))
    quiet = {node: has for node, has in found.items() if QUIET in having[node]}
    on_demand = any(QUIET_ON_DEMAND in has for has in having.values())
    return Placement({node: has for node, has in found.items() if node not in quiet}, quiet, on_demand)
