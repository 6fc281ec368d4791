"""What Prometheus and Grafana are given fits what qray exports and what Ray's dashboard embeds."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.dashboard.modules.metrics import grafana_dashboard_factory, templates
from support.monitoring import DASHBOARD, MONITORING, PROMETHEUS, dashboard, expressions, metrics_of

from qray.graph import telemetry

README = Path(__file__).parents[2] / "README.md"
#: What Prometheus calls the series of each kind of metric.
SUFFIXES = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}


def exported() -> set[str]:
    """The names under which Prometheus sees what qray reports."""
    made = re.findall(r'(Counter|Gauge|Histogram)\("(qray_\w+)"', inspect.getsource(telemetry))
    return {f"ray_{name}{suffix}" for kind, name in made for suffix in SUFFIXES[kind]}


def test_panels_ask_for_nothing_that_qray_does_not_export() -> None:
    asked = set.union(*map(metrics_of, expressions().values()))
    ours = {name for name in asked if name.startswith("ray_qray_")}
    assert ours <= exported()


def test_every_metric_of_qray_is_in_a_panel() -> None:
    asked = " ".join(set.union(*map(metrics_of, expressions().values())))
    reported = set(re.findall(r'"(qray_\w+)"', inspect.getsource(telemetry)))
    assert reported
    assert {name for name in reported if f"ray_{name}" not in asked} == set()


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    for panel in dashboard()["panels"]:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])


def test_panels_do_not_overlap() -> None:
    taken = [
        (x, y)
        for at in (panel["gridPos"] for panel in dashboard()["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


def test_the_dashboard_takes_data_source_and_session_from_the_page_that_embeds_it() -> None:
    """Ray's page gives them as the variables `datasource` and `SessionName`; its data source has no uid of its own."""
    names = [variable["name"] for variable in dashboard()["templating"]["list"]]
    assert names == ["datasource", "SessionName", "JobId"]
    used = [part["datasource"] for part in (*dashboard()["panels"], *dashboard()["templating"]["list"][1:])]
    assert set(used) == {"${datasource}"}
    rays = yaml.safe_load(templates.GRAFANA_DATASOURCE_TEMPLATE("Prometheus", "http://localhost:9090", {}, {}))
    assert "uid" not in rays["datasources"][0]


def test_rays_page_embeds_the_dashboard_where_its_uid_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    uid = dashboard()["uid"]
    assert f"RAY_GRAFANA_DATA_DASHBOARD_UID={uid} " in README.read_text(encoding="utf-8")
    monkeypatch.setenv("RAY_GRAFANA_DATA_DASHBOARD_UID", uid)
    assert grafana_dashboard_factory.generate_data_grafana_dashboard()[1] == uid


def test_the_readme_names_the_files() -> None:
    text = README.read_text(encoding="utf-8")
    for file in (DASHBOARD, PROMETHEUS):
        assert f"workflows/monitoring/{file.name}" in text
    assert {file.name for file in MONITORING.iterdir()} == {DASHBOARD.name, PROMETHEUS.name}


def test_prometheus_takes_the_configuration() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on PATH (Debian has it: apt-get install prometheus)")
    checked = subprocess.run(["promtool", "check", "config", PROMETHEUS], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_prometheus_looks_where_ray_writes_its_nodes_by_default() -> None:
    ours = yaml.safe_load(PROMETHEUS.read_text(encoding="utf-8"))["scrape_configs"][0]
    rays = Path(templates.__file__).parent / "export" / "prometheus" / "prometheus.yml"
    wanted = yaml.safe_load(rays.read_text(encoding="utf-8"))["scrape_configs"][0]
    assert ours["job_name"] == wanted["job_name"]
    assert ours["file_sd_configs"][0]["files"] == wanted["file_sd_configs"][0]["files"]
