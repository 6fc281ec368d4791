"""run.json: how the units that are not finished ended, and where. The table is written from it, on any machine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from qray.atomic import write_json
from qray.errors import QrayError
from qray.measure.host import provenance_here
from qray.measure.isa import Machine
from qray.orchestrate.store import Store

FILE = "run.json"
FORMAT = 1


@dataclass
class Result:
    """How a unit ended: "ok" with its `record`, else `status` (failed or skipped) and `reason`. `record` of one that is
    not "ok" holds what else is known, such as the versions."""

    status: str
    record: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class RunRecord:
    """The machine that the plan's keys are for (a cluster's least), and how units ended that no run has finished."""

    machine: Machine
    ended: dict[str, Result]


def write_run(store: Store, stage: str, started: float, results: dict[str, Result], machine: Machine) -> None:
    """Record how a run's units ended; what earlier runs say of units that this one did not try is kept."""
    ended = read_run(store).ended if (store.out / FILE).is_file() else {}
    for key, result in results.items():
        ended.pop(key, None)
        if result.status != "ok":
            ended[key] = Result(result.status, provenance_here() | result.record, result.reason)
    record = {"format": FORMAT, "stage": stage, "started": started, "machine": asdict(machine)}
    write_json(store.out / FILE, record | {"ended": {key: vars(result) for key, result in ended.items()}})


def read_run(store: Store) -> RunRecord:
    """What the runs into OUT left of themselves.

    Raises:
        QrayError: OUT has no run.json, or one that is damaged or of another format.
    """
    path = store.out / FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise QrayError(f"{path}: format {record['format']}, this qray reads format {FORMAT}; run again")
        return RunRecord(Machine(**record["machine"]), {key: Result(**ended) for key, ended in record["ended"].items()})
    except FileNotFoundError:
        raise QrayError(f"{path}: no such file, so nothing ran into {store.out}; name the output of a run") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise QrayError(f"{path}: not readable as the record of a run ({error}); remove it and run again") from None
