"""What of a graph is still to be done, and what of it cannot be done here."""

from __future__ import annotations

from collections.abc import Collection

from qray.graph.store import Store
from qray.graph.unit import Graph, Result, Unit


def impossible(graph: Graph, store: Store) -> dict[Unit, Result]:
    """Units that are not finished and that this machine cannot do, and those that need them."""
    found: dict[Unit, Result] = {}
    for unit in graph:
        if store.finished(unit):
            continue
        reason = unit.task.impossible() or next((found[n].reason for n in unit.needs if n in found), None)
        if reason is not None:
            found[unit] = Result("skipped", reason=reason)
    return found


def lacking(graph: Graph, wanted: Collection[Unit], store: Store, given_up: Collection[Unit] = ()) -> list[Unit]:
    """Units of those wanted that are not finished, and unfinished ones that they need, in the order of the graph."""
    missing: set[Unit] = set()
    todo = list(wanted)
    while todo:
        unit = todo.pop()
        if unit in missing or unit in given_up:
            continue
        todo += unit.settled
        if not store.finished(unit):
            missing.add(unit)
            todo += unit.needs
    # What is settled anew may change the key of what waits for it.
    again = {unit for unit in wanted if not missing.isdisjoint(unit.settled)}
    return [unit for unit in graph if unit in missing | again]
