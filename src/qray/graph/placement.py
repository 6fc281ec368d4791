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


def whereabouts() -> dict[str, Any]:
    """The node that this task runs on, its host, and the versions there, for the record of what ran where."""
    return {"node": ray.get_runtime_context().get_node_id(), **provenance_here()}


@ray.remote(num_cpus=0)
def _capabilities() -> frozenset[str]:
    return capabilities()


@dataclass(frozen=True)
class Placement:
    """Nodes that work may be placed on, by id, with the `capabilities` of their CPUs."""

    nodes: dict[str, frozenset[str]]
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


def quiet_node(able: Collection[str]) -> tuple[str, float]:
    """(node id, its CPUs) to measure on, of those that can: CPU nodes before GPU nodes, then the one with the most
    CPUs."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] in able]
    if not nodes:
        raise Unavailable(f"none of the {len(able)} nodes that can measure this is alive")
    best = max(nodes, key=lambda n: (n["Resources"].get("GPU", 0) == 0, n["Resources"]["CPU"], n["NodeID"]))
    return best["NodeID"], best["Resources"]["CPU"]


def on_node(node: str) -> NodeAffinitySchedulingStrategy:
    """On this node and no other."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


def placement() -> Placement:
    """Ask every node that runs work what its CPU has.

    Raises:
        ray.exceptions.GetTimeoutError: a node does not answer.
    """
    nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0]
    asked = [_capabilities.options(scheduling_strategy=on_node(node)).remote() for node in nodes]
    return Placement(dict(zip(nodes, ray.get(asked, timeout=PROBE_TIMEOUT_S), strict=True)))
