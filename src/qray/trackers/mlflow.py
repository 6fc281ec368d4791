"""A finished run in MLflow: one parent run per OUT, one nested run per row, and never twice the same."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any

from qray.errors import QrayError
from qray.results.evidence import Evidence, VariantEvidence

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "qray"
DIGEST, HOST, ROW, POINT = "qray.digest", "qray.latency_host", "qray.variant", "qray.point"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
#: Columns that say which row it is. They are fixed by the digest, as parameters in MLflow have to be.
PARAMS = (
    "variant", "key", "method", "engine", "backbone", "seed", "device", "threads", "batch", "frames", "image_size",
    "split", "stage", "weight_bits",
)  # fmt: skip
#: MLflow's REST API takes at most this many parameters or tags in one request.
BATCH = 100
#: MLflow's databases take parameters and tags of up to this many characters.
LONGEST = 5000
#: Files of OUT that belong to the run as a whole, where they are there.
FILES = ("study.yaml", "results.parquet", "rejected.parquet", "report.html", "report.md")
STATUS = {"ok": "FINISHED", "failed": "FAILED", "skipped": "KILLED"}


@dataclass(frozen=True)
class Tracked:
    """What was written: the parent run and its nested runs, and whether the parent was there before."""

    uri: str
    experiment: str
    run_id: str
    rows: int
    updated: bool


def digest(evidence: Evidence) -> str:
    """Digest of the study and of the keys of all rows: what makes two OUTs the same run on the same host."""
    keys = sorted({str(row.get("key")) for row in _rows(evidence)})
    study = evidence.study.canonical() if evidence.study else None
    text = json.dumps({"study": study, "keys": keys}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def track(evidence: Evidence, tracking_uri: str | None = None, experiment: str | None = None) -> Tracked:
    """Write a run to MLflow; one that is there already (same study, keys and host of the latencies) is updated.

    tracking_uri: as MLflow takes it; None for its own default (MLFLOW_TRACKING_URI, else ./mlflow.db).

    Raises:
        QrayError: MLflow is not installed, cannot be reached or refuses, or OUT has no rows.
    """
    if find_spec("mlflow") is None:
        raise QrayError("MLflow is not installed; pip install 'qray[mlflow]' brings it")
    if not _rows(evidence):
        raise QrayError(f"{evidence.out}: there is no row to track; `qray run all --out {evidence.out}` makes them")
    # Unless the user says otherwise: nothing but the tracking server hears of a run, and a server that does not
    # answer is a sentence after seconds (MLflow's own default tries for minutes).
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=tracking_uri)
    name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    try:
        return _Tracker(client, _experiment_id(client, name), evidence).write(name)
    except MlflowException as error:
        first = str(error).strip().partition("\n")[0]
        raise QrayError(f"MLflow at {client.tracking_uri}: {first}") from error


def _rows(evidence: Evidence) -> list[dict[str, Any]]:
    names, base = [v.name for v in evidence.variants], evidence.baseline
    others = [base] if base is not None and base.name not in names else []
    return [row for v in [*evidence.variants, *others] for row in v.rows] + list(evidence.trials)


def _experiment_id(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name))
    if found.lifecycle_stage != "active":
        raise QrayError(f"MLflow's experiment {name!r} is deleted; restore it there, or name another --experiment")
    return str(found.experiment_id)


class _Tracker:
    def __init__(self, client: MlflowClient, experiment_id: str, evidence: Evidence) -> None:
        self.client, self.experiment_id, self.evidence = client, experiment_id, evidence
        self.digest = digest(evidence)

    def write(self, experiment: str) -> Tracked:
        rows, out = _rows(self.evidence), self.evidence.out
        parent, updated = self._parent(rows)
        self._log(parent, params=_study_params(self.evidence), tags=self._run_tags(rows))
        for name in FILES:
            if (out / name).is_file():
                self.client.log_artifact(parent, str(out / name))
        for name in ("report", "cards"):
            if (out / name).is_dir():
                self.client.log_artifacts(parent, str(out / name), name)
        self._nested(parent, rows)
        timing = self.evidence.timing
        end = int(1000 * (timing.started + timing.total)) if timing else _time_ms(rows[0])
        self.client.set_terminated(parent, "FINISHED", end_time=end)
        return Tracked(self.client.tracking_uri, experiment, parent, len(rows), updated)

    def _parent(self, rows: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
        """The run of this OUT. One that was tracked before its latencies were measured is taken over."""
        host = _latency_host(rows)
        found = {run.data.tags.get(HOST, ""): run for run in self._search(f"tags.`{DIGEST}` = '{self.digest}'")}
        run = found.get(host) or found.get("")
        if run is not None:
            return str(run.info.run_id), True
        timing, study = self.evidence.timing, self.evidence.study
        start = int(1000 * timing.started) if timing else _time_ms(rows[0])
        name = study.name if study else self.evidence.out.name
        tags = {DIGEST: self.digest, HOST: host}
        created = self.client.create_run(self.experiment_id, start_time=start, run_name=name, tags=tags)
        return str(created.info.run_id), False

    def _search(self, where: str) -> Iterator[Run]:
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment_id], where, max_results=500, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _run_tags(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        from qray import __version__

        evidence = self.evidence
        tags = {DIGEST: self.digest, HOST: _latency_host(rows), "qray.out": str(evidence.out.resolve()),
                "qray.version": __version__, NOTE: _note(evidence)}  # fmt: skip
        tags |= {name: str(rows[0][name]) for name in ("host", "cpu_flags") if rows[0].get(name)}
        return tags | {f"version.{name}": value for name, value in _versions(rows[0]).items()}

    def _nested(self, parent: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """One run per row. What is there for this row is written over, and what belongs to no row any more goes."""
        there: dict[tuple[str, str], Run] = {}
        for run in self._search(f"tags.`{PARENT}` = '{parent}'"):
            there[run.data.tags.get(ROW, ""), run.data.tags.get(POINT, "")] = run
        shipped: set[str] = set()
        for row in rows:
            name, point, metrics = str(row["variant"]), _point(row), _metrics(row)
            run = there.pop((name, point), None) or there.pop((name, ""), None)
            if run is not None and not set(run.data.metrics) <= set(metrics):
                # MLflow cannot take a metric back, and a figure that is null now is not to be shown.
                self.client.delete_run(run.info.run_id)
                run = None
            if run is None:
                label = f"{name} {point}".rstrip()
                tags = {PARENT: parent, ROW: name, POINT: point}
                run = self.client.create_run(self.experiment_id, start_time=_time_ms(row), run_name=label, tags=tags)
            run_id = str(run.info.run_id)
            params = {name: str(row[name]) for name in PARAMS if row.get(name) is not None}
            self._log(run_id, params, {POINT: point} | _row_tags(row), metrics, _time_ms(row))
            if name not in shipped:
                shipped.add(name)
                self._ship(run_id, row)
            self.client.set_terminated(run_id, STATUS.get(str(row.get("status")), "FINISHED"), end_time=_time_ms(row))
        for run in there.values():
            self.client.delete_run(run.info.run_id)

    def _ship(self, run_id: str, row: Mapping[str, Any]) -> None:
        """The artifact and its card, with the variant's first row: more points of it share the same files."""
        out = self.evidence.out
        folder = out / str(row.get("artifact"))
        if row.get("artifact") and folder.is_dir():
            self.client.log_artifacts(run_id, str(folder), "artifact")
        card = out / "cards" / f"{row['variant']}.md"
        if card.is_file():
            self.client.log_artifact(run_id, str(card))

    def _log(
        self, run_id: str, params: Mapping[str, str], tags: Mapping[str, str],
        metrics: Mapping[str, float] | None = None, at_ms: int = 0,
    ) -> None:  # fmt: skip
        from mlflow.entities import Metric, Param, RunTag

        for part in _chunks(params):
            self.client.log_batch(run_id, params=[Param(name, value[:LONGEST]) for name, value in part.items()])
        for part in _chunks(tags):
            self.client.log_batch(run_id, tags=[RunTag(name, value[:LONGEST]) for name, value in part.items()])
        # The time is the table's own, so that writing the same table again adds nothing to a metric's history.
        values = [Metric(name, value, at_ms, 0) for name, value in (metrics or {}).items()]
        if values:
            self.client.log_batch(run_id, metrics=values)


def _chunks(values: Mapping[str, str]) -> Iterator[dict[str, str]]:
    items = iter(values.items())
    while part := dict(islice(items, BATCH)):
        yield part


def _point(row: Mapping[str, Any]) -> str:
    return "" if row.get("threads") is None else f"threads={row['threads']} batch={row['batch']}"


def _time_ms(row: Mapping[str, Any]) -> int:
    created = row.get("created_at")
    return int(1000 * created.timestamp()) if isinstance(created, datetime) else 0


def _latency_host(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where latencies were measured: the same study on two hosts is two runs."""
    return next((str(row["host"]) for row in rows if row.get("latency_p50_ms") is not None and row.get("host")), "")


def _versions(row: Mapping[str, Any]) -> dict[str, str]:
    try:
        found = json.loads(row.get("versions") or "{}")
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a row, by their columns' names. What was not measured is left out."""
    numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {k: float(v) for k, v in numbers.items() if k not in PARAMS and math.isfinite(v)}


def _row_tags(row: Mapping[str, Any]) -> dict[str, str]:
    """The words of a row; an empty one takes back what an earlier table said."""
    tags = {}
    for name, value in row.items():
        if name in PARAMS or name == "versions":
            continue
        if isinstance(value, str | bool):
            tags[name] = str(value)
        elif value is None and name in ("reason", "verdict", "verdict_holm"):
            tags[name] = ""
    return tags


def _study_params(evidence: Evidence) -> dict[str, str]:
    """The study, flat: dotted keys, its variants by name rather than by number."""
    if evidence.study is None:
        return {}
    tree = evidence.study.canonical()
    tree["variants"] = {v["name"]: {k: v[k] for k in v if k != "name"} for v in tree["variants"]}
    flat: dict[str, str] = {}

    def walk(path: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(f"{path}.{key}" if path else key, value)
        else:
            flat[path] = node if isinstance(node, str) else json.dumps(node)

    walk("", tree)
    return flat


def _note(evidence: Evidence) -> str:
    """What MLflow shows above the run: a verdict per variant, and what the run cannot carry."""

    reference = evidence.reference.name if evidence.reference else None

    def line(variant: VariantEvidence) -> str:
        row = variant.row
        mae = row.get("mae")
        error = "" if mae is None else f", MAE {mae:.2f}"
        word = row.get("verdict") or (row.get("status") if row.get("status") != "ok" else "no verdict")
        return f"- {variant.name}: {'reference' if variant.name == reference else word}{error}"

    return "\n".join([*map(line, evidence.variants), "", *evidence.notes]).strip()
