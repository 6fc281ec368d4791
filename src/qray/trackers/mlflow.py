"""A finished run in MLflow: one parent run per OUT, one nested run per row, and never twice the same."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from qray.errors import QrayError
from qray.escape import as_called
from qray.judge.evidence import Evidence
from qray.judge.row import Row
from qray.trackers import fields

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "qray"
DIGEST, HOST, ROW, POINT = "qray.digest", "qray.latency_host", "qray.variant", "qray.point"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
#: MLflow gives no more runs at once; a run has some dozens of rows.
MOST_RUNS = 50_000
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


def track(evidence: Evidence, tracking_uri: str | None = None, experiment: str | None = None) -> Tracked:
    """Write a run to MLflow; one that is there already (same study, keys and host of the latencies) is updated.

    tracking_uri: as MLflow takes it; None for its own default (MLFLOW_TRACKING_URI, else ./mlflow.db).

    Raises:
        QrayError: MLflow is not installed, cannot be reached or refuses, or OUT has no rows.
    """
    if find_spec("mlflow") is None:
        raise QrayError("MLflow is not installed; pip install 'qray[mlflow]' brings it")
    # Unless the user says otherwise: nothing but the tracking server hears of a run, and a server that does not
    # answer is a sentence after seconds (MLflow's own default tries for minutes).
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = tracking_uri or mlflow.get_tracking_uri()
    name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(name)
    except Exception as error:
        # Each kind of database has errors of its own, which MLflow lets through.
        raise QrayError(f"MLflow at {uri}: {_sentence(error)}") from error
    if found is not None and found.lifecycle_stage != "active":
        raise QrayError(f"MLflow's experiment {name!r} is deleted; restore it there, or name another --experiment")
    try:
        experiment_id = found.experiment_id if found is not None else client.create_experiment(name)
        return _Tracker(client, str(experiment_id), evidence).write(name)
    except MlflowException as error:
        raise QrayError(f"MLflow at {uri}: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    if "failed with exception" in text:
        # What follows is the HTTP client's own account of each try.
        return "no answer; is a server running there, and is --tracking-uri right?"
    if "filesystem tracking backend" in text:
        return "this MLflow keeps runs in a database, not in a folder; try --tracking-uri sqlite:///mlflow.db"
    return text


class _Tracker:
    def __init__(self, client: MlflowClient, experiment_id: str, evidence: Evidence) -> None:
        self.client, self.experiment_id, self.evidence = client, experiment_id, evidence
        self.digest = fields.digest(evidence)

    def write(self, experiment: str) -> Tracked:
        rows, out = self.evidence.rows, self.evidence.out
        parent, updated = self._parent(rows)
        self._log(parent, params=fields.study_params(self.evidence), tags=self._run_tags(rows))
        for name in FILES:
            if (out / name).is_file():
                self.client.log_artifact(parent, str(out / name))
        for name in ("report", "cards"):
            if (out / name).is_dir():
                self.client.log_artifacts(parent, str(out / name), name)
        self._nested(parent, rows)
        timing = self.evidence.timing
        end = int(1000 * (timing.started + timing.total)) if timing else fields.time_ms(rows[0])
        self.client.set_terminated(parent, "FINISHED", end_time=end)
        return Tracked(self.client.tracking_uri, experiment, parent, len(rows), updated)

    def _parent(self, rows: Sequence[Row]) -> tuple[str, bool]:
        """The run of this OUT. One that was tracked before its latencies were measured is taken over."""
        host = fields.latency_host(rows)
        found = {run.data.tags.get(HOST, ""): run for run in self._search(f"tags.`{DIGEST}` = '{self.digest}'")}
        run = found.get(host) or found.get("")
        if run is not None:
            return str(run.info.run_id), True
        timing, tags = self.evidence.timing, {DIGEST: self.digest, HOST: host}
        start = int(1000 * timing.started) if timing else fields.time_ms(rows[0])
        return str(self.client.create_run(self.experiment_id, start, tags, self.evidence.study.name).info.run_id), False

    def _search(self, where: str) -> list[Run]:
        return list(self.client.search_runs([self.experiment_id], where, max_results=MOST_RUNS))

    def _run_tags(self, rows: Sequence[Row]) -> dict[str, str]:
        from qray import __version__

        evidence = self.evidence
        tags = {DIGEST: self.digest, HOST: fields.latency_host(rows), "qray.version": __version__,
                "qray.out": as_called(str(evidence.out.resolve())), NOTE: fields.note(evidence)}  # fmt: skip
        tags |= {name: str(value) for name in ("host", "cpu_flags") if (value := getattr(rows[0], name))}
        return tags | {f"version.{name}": value for name, value in rows[0].packages.items()}

    def _nested(self, parent: str, rows: Sequence[Row]) -> None:
        """One run per row. What is there for this row is written over, and what belongs to no row any more goes."""
        children = self._search(f"tags.`{PARENT}` = '{parent}'")
        there = {(run.data.tags.get(ROW, ""), run.data.tags.get(POINT, "")): run for run in children}
        for at, row in enumerate(rows):
            name, point, metrics = str(row.variant), fields.point(row), fields.metrics(row)
            run = there.pop((name, point), None) or there.pop((name, ""), None)
            if run is not None and not set(run.data.metrics) <= set(metrics):
                # MLflow cannot take a metric back, and a figure that is null now is not to be shown.
                self.client.delete_run(run.info.run_id)
                run = None
            if run is None:
                tags = {PARENT: parent, ROW: name, POINT: point}
                run = self.client.create_run(self.experiment_id, fields.time_ms(row), tags, f"{name} {point}".rstrip())
            run_id = str(run.info.run_id)
            params = {name: str(value) for name in fields.PARAMS if (value := getattr(row, name)) is not None}
            self._log(run_id, params, {POINT: point} | fields.row_tags(row), metrics, fields.time_ms(row))
            if name not in {earlier.variant for earlier in rows[:at]}:
                self._ship(run_id, row)
            self.client.set_terminated(run_id, STATUS.get(row.status, "FINISHED"), end_time=fields.time_ms(row))
        for run in there.values():
            self.client.delete_run(run.info.run_id)

    def _ship(self, run_id: str, row: Row) -> None:
        """The artifact and its card, with the variant's first row: more points of it share the same files."""
        out = self.evidence.out
        folder = out / str(row.artifact)
        if row.artifact and folder.is_dir():
            self.client.log_artifacts(run_id, str(folder), "artifact")
        card = out / "cards" / f"{row.variant}.md"
        if card.is_file():
            self.client.log_artifact(run_id, str(card))

    def _log(
        self, run_id: str, params: Mapping[str, str], tags: Mapping[str, str],
        metrics: Mapping[str, float] | None = None, at_ms: int = 0,
    ) -> None:  # fmt: skip
        from mlflow.entities import Metric, Param, RunTag

        # MLflow splits what is too much for one request, and cuts off what is too long for its database. The time is
        # the table's own, so that writing the same table again adds nothing to a metric's history.
        self.client.log_batch(
            run_id, [Metric(name, value, at_ms, 0) for name, value in (metrics or {}).items()],
            [Param(*item) for item in params.items()], [RunTag(*item) for item in tags.items()],
        )  # fmt: skip
