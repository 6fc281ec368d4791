"""The Grafana dashboard and the Prometheus configuration that the project ships, and a real Prometheus."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from support.runs import free_port, wait_until

MONITORING = Path(__file__).parents[2] / "workflows" / "monitoring"
DASHBOARD = MONITORING / "grafana.json"
PROMETHEUS = MONITORING / "prometheus.yml"
#: What Grafana puts in the place of its variables, where all is chosen.
VARIABLES = {"$SessionName": ".*", "$JobId": ".*", "$__rate_interval": "1m"}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    read: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return read


def expressions() -> dict[str, str]:
    """What each panel asks Prometheus for, by its title and the letter of the question, as Grafana would put it."""
    asked = {}
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            asked[f"{panel['title']}, {target['refId']}"] = expression
    return asked


def metrics_of(expression: str) -> set[str]:
    """The metrics that an expression names."""
    return set(re.findall(r"\b(ray_\w+)\{", expression))


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def ask(self, path: str, **query: object) -> Any:
        """What its API answers."""
        asked = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from None

    def over(self, expression: str, since: float, until: float) -> list[dict[str, Any]]:
        """The series of an expression between two times, in seconds since 1970."""
        found: list[dict[str, Any]] = self.ask("query_range", query=expression, start=since, end=until, step=1)[
            "result"
        ]
        return found


@contextlib.contextmanager
def running_prometheus(nodes: Path, folder: Path) -> Iterator[Prometheus | None]:
    """A Prometheus with the project's configuration, which looks for a Ray in `nodes` and asks it each second; None
    where there is no prometheus on PATH."""
    if shutil.which("prometheus") is None:
        yield None
        return
    settings = yaml.safe_load(PROMETHEUS.read_text(encoding="utf-8"))
    settings["global"]["scrape_interval"] = "1s"
    (scrape,) = settings["scrape_configs"]
    (discovery,) = scrape["file_sd_configs"]
    discovery["files"] = [str(nodes)]
    config, log, port = folder / "prometheus.yml", folder / "log", free_port()
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=2).close()
            return True
        return False

    try:
        wait_until(ready, "Prometheus", 60)
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()
