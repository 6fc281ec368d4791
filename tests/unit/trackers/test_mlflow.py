"""A run in a real MLflow store: every row once, with the figures that were measured and no others."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from support.evidence_runs import key_of, make_run

from qray.errors import QrayError
from qray.judge.evidence import Evidence
from qray.judge.judge import read_evidence
from qray.judge.row import Row
from qray.trackers import fields
from qray.trackers import mlflow as tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

installed = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed: pip install 'qray[mlflow]'"
)
OUT = "out"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory, where MLflow keeps the artifacts of a local store, and one database for all tests."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="module")
def evidence(workplace: Path) -> Evidence:
    """A run made by hand, with one artifact and a report."""
    out = make_run(workplace / OUT, table=True)
    model = out / "artifacts" / key_of("build", "ptq-openvino") / "model.bin"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"weights")
    (out / "report").mkdir()
    for name in ("report.html", "report/pareto.png", "cards/ptq-openvino.md"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("content")
    return read_evidence(out)


@pytest.fixture(scope="module")
def client(workplace: Path) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient("sqlite:///mlflow.db")


def write(evidence: Evidence, experiment: str) -> tracker.Tracked:
    return tracker.track(evidence, "sqlite:///mlflow.db", experiment)


def runs(client: MlflowClient, experiment: str) -> list[Run]:
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def nested(client: MlflowClient, experiment: str, variant: str) -> Run:
    (run,) = [run for run in runs(client, experiment) if run.data.params.get("variant") == variant]
    return run


@pytest.fixture(scope="module")
def tracked(evidence: Evidence, client: MlflowClient) -> tracker.Tracked:
    return write(evidence, "once")


def files(client: MlflowClient, run_id: str, folder: str | None = None) -> set[str]:
    return {file.path for file in client.list_artifacts(run_id, folder)}


@installed
def test_every_row_of_the_table_is_a_nested_run(tracked: tracker.Tracked, client: MlflowClient) -> None:
    table = pq.read_table(Path(OUT) / "results.parquet", partitioning=None).to_pylist()
    found = [r.data.params["variant"] for r in runs(client, "once") if r.info.run_id != tracked.run_id]
    assert sorted(found) == sorted(row["variant"] for row in table)


@installed
def test_nested_runs_name_their_parent(tracked: tracker.Tracked, client: MlflowClient) -> None:
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs(client, "once")}
    assert parents == {tracked.run_id, None}


@installed
@pytest.mark.usefixtures("tracked")
@pytest.mark.parametrize("variant", ["ptq-openvino", "ptq-inductor", "mean-predictor", "qat-w8-abcdef"])
def test_metrics_are_the_figures_of_the_row_without_its_nulls(client: MlflowClient, variant: str) -> None:
    table = pq.read_table(Path(OUT) / "results.parquet", partitioning=None).to_pylist()
    row = next(row for row in table if row["variant"] == variant)
    figures = {name: value for name, value in row.items()
               if isinstance(value, int | float) and not isinstance(value, bool)}  # fmt: skip
    metrics = nested(client, "once", variant).data.metrics
    assert metrics == {name: value for name, value in figures.items() if name not in fields.PARAMS}


@installed
@pytest.mark.usefixtures("tracked")
@pytest.mark.parametrize(("variant", "status"), [("fp32", "FINISHED"), ("ptq-inductor", "KILLED"),
                                                  ("qat-w4-inductor", "FAILED")])  # fmt: skip
def test_the_status_of_a_row_is_that_of_its_run(client: MlflowClient, variant: str, status: str) -> None:
    assert nested(client, "once", variant).info.status == status


@installed
@pytest.mark.usefixtures("tracked")
def test_the_verdict_is_a_tag(client: MlflowClient) -> None:
    assert nested(client, "once", "ptq-onnxruntime").data.tags["verdict"] == "inferior"


@installed
def test_the_study_is_the_parent_s_parameters(tracked: tracker.Tracked, client: MlflowClient) -> None:
    params = client.get_run(tracked.run_id).data.params
    named = ("verdict.margin", "variants.ptq-openvino.engine", "data.dir")
    assert [params[name] for name in named] == ["1.0", "openvino", "null"]


@installed
def test_versions_and_host_are_the_parent_s_tags(tracked: tracker.Tracked, client: MlflowClient) -> None:
    tags = client.get_run(tracked.run_id).data.tags
    assert (tags["version.torch"], tags["host"]) == ("2.14.1", "this host")


@installed
def test_the_table_and_the_report_are_the_parent_s_artifacts(tracked: tracker.Tracked, client: MlflowClient) -> None:
    wanted = {"results.parquet", "study.yaml", "report.html", "report"}
    assert wanted - files(client, tracked.run_id) == set()
    assert files(client, tracked.run_id, "report") == {"report/pareto.png"}


@installed
@pytest.mark.usefixtures("tracked")
def test_a_variant_s_run_holds_its_artifact_and_card(client: MlflowClient) -> None:
    run_id = nested(client, "once", "ptq-openvino").info.run_id
    assert files(client, run_id) == {"artifact", "ptq-openvino.md"}
    assert files(client, run_id, "artifact") == {"artifact/model.bin"}


@installed
def test_the_same_out_again_updates_the_same_runs(evidence: Evidence, client: MlflowClient) -> None:
    first = write(evidence, "again")
    before = {run.info.run_id for run in runs(client, "again")}
    second = write(evidence, "again")
    assert (second.run_id, second.updated) == (first.run_id, True)
    assert {run.info.run_id for run in runs(client, "again")} == before


@installed
def test_a_metric_has_no_longer_history_for_being_written_again(evidence: Evidence, client: MlflowClient) -> None:
    write(evidence, "history")
    write(evidence, "history")
    run_id = nested(client, "history", "fp32").info.run_id
    assert len(client.get_metric_history(run_id, "mae")) == 1


@installed
def test_a_run_that_was_tracked_before_it_was_measured_is_taken_over(evidence: Evidence, client: MlflowClient) -> None:
    bare = [replace(v, rows=tuple(_unmeasured(row) for row in v.rows)) for v in evidence.variants]
    write(replace(evidence, variants=tuple(bare)), "later")
    before = len(runs(client, "later"))
    assert write(evidence, "later").updated
    assert len(runs(client, "later")) == before


def _unmeasured(row: Row) -> Row:
    names = ("threads", "batch", "peak_rss_mb", "load_average")
    return replace(row, **{n: None for n in vars(row) if n in names or n.startswith(("latency", "speedup"))})


@installed
def test_a_figure_that_is_null_now_is_shown_no_longer(evidence: Evidence, client: MlflowClient) -> None:
    write(evidence, "lost")
    less = [replace(v, rows=tuple(replace(row, peak_rss_mb=None) for row in v.rows)) for v in evidence.variants]
    write(replace(evidence, variants=tuple(less)), "lost")
    assert "peak_rss_mb" not in nested(client, "lost", "fp32").data.metrics


@installed
def test_latencies_of_another_host_are_another_run(evidence: Evidence, client: MlflowClient) -> None:
    first = write(evidence, "hosts")
    moved = [replace(v, rows=tuple(replace(row, host="other") for row in v.rows)) for v in evidence.variants]
    assert write(replace(evidence, variants=tuple(moved)), "hosts").run_id != first.run_id


@installed
def test_another_seed_is_another_run(workplace: Path, evidence: Evidence, client: MlflowClient) -> None:
    other = read_evidence(make_run(workplace / "seed 1", seed=1))
    assert write(evidence, "seeds").run_id != write(other, "seeds").run_id


@installed
@pytest.mark.parametrize(
    "how",
    [{"without": ["fp32"]}, {"clips": 1}, {"nan": {"ptq-openvino": 200}}, {"constant": ["fp32"]}],
    ids=["no FP32 row", "one clip", "NaN predictions", "constant FP32"],
)
def test_a_run_that_proves_little_is_tracked_all_the_same(workplace: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    done = write(read_evidence(make_run(tmp_path / "out", table=True, **how)), "little")
    assert done.rows == pq.read_metadata(tmp_path / "out" / "results.parquet").num_rows


@installed
@pytest.mark.usefixtures("workplace")
def test_a_deleted_experiment_is_a_sentence(evidence: Evidence, client: MlflowClient) -> None:
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(QrayError, match="MLflow's experiment 'gone' is deleted; restore it"):
        write(evidence, "gone")


@installed
def test_a_server_that_does_not_answer_is_a_sentence(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(QrayError, match=r"^MLflow at http://127\.0\.0\.1:9: no answer; is a server running"):
        tracker.track(evidence, "http://127.0.0.1:9", "x")


@installed
@pytest.mark.parametrize("uri", ["ftp://nowhere", "sqlite:///plain.txt/mlflow.db", "sqlite:///plain.txt"])
def test_a_store_that_cannot_be_opened_is_a_sentence(workplace: Path, evidence: Evidence, uri: str) -> None:
    (workplace / "plain.txt").write_text("this is no database")
    with pytest.raises(QrayError, match=f"^MLflow at {uri}: "):
        tracker.track(evidence, uri, "x")


def test_without_mlflow_a_sentence_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    with pytest.raises(QrayError, match=r"MLflow is not installed; pip install 'qray\[mlflow\]' brings it"):
        tracker.track(read_evidence(make_run(tmp_path / "out")))
