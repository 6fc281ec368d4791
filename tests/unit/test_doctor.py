"""The doctor: every fact found by trying it, and an exit code that a script can rely on."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from rich.console import Console

from qray import commands, doctor
from qray.doctor import Finding, diagnose, print_findings
from qray.engines.catalog import ENGINES
from qray.errors import QrayError

GOOD = [Finding("packages", "ok", "torch 2"), Finding("engine openvino", "missing", "not installed")]
BROKEN = [*GOOD, Finding("Ray", "broken", "it did not start")]


@pytest.fixture(scope="module")
def findings() -> Iterator[dict[str, Finding]]:
    """One look at this machine, a Ray of its own started for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        yield {finding.topic: finding for finding in diagnose()}


def test_ray_is_started_and_answers(findings: dict[str, Finding]) -> None:
    assert findings["Ray"].state == "ok", findings["Ray"].detail


def test_ray_is_ended_again(findings: dict[str, Finding]) -> None:
    assert not ray.is_initialized()


def test_mjpeg_is_written_and_read_back(findings: dict[str, Finding]) -> None:
    assert "mjpeg" in findings["video"].detail


def test_every_engine_is_looked_at(findings: dict[str, Finding]) -> None:
    engines = {f"engine {engine}" for engine in ENGINES}
    assert engines <= findings.keys()


def test_eager_pytorch_is_always_there(findings: dict[str, Finding]) -> None:
    assert findings["engine eager"].state == "ok", findings["engine eager"].detail


def test_nothing_is_broken_where_the_tests_run(findings: dict[str, Finding]) -> None:
    assert [finding for finding in findings.values() if finding.state == "broken"] == []


def test_every_finding_has_a_detail(findings: dict[str, Finding]) -> None:
    assert [finding.topic for finding in findings.values() if not finding.detail] == []


def test_a_dead_ray_address_is_a_broken_finding_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    found = doctor._try("Ray", doctor._ray)
    assert (found.state, "127.0.0.1:9" in found.detail) == ("broken", True)


def test_a_check_that_raises_is_a_broken_finding() -> None:
    def check() -> doctor.Seen:
        raise RuntimeError("first line\nsecond line")

    assert doctor._try("x", check) == Finding("x", "broken", "RuntimeError: first line; second line")


def test_an_engine_that_lacks_one_method_says_which_work_and_why_the_other_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qray.engines.registry.missing_requirement",
                        lambda variant: "no bf16 in this CPU" if variant.method == "bf16" else None)  # fmt: skip
    found = doctor._try("engine openvino", lambda: doctor._variants("openvino"))
    assert found.state == "partly"
    assert found.detail.startswith("fp32, ")
    assert found.detail.endswith("; not bf16: no bf16 in this CPU")


def test_an_engine_that_is_not_there_is_missing_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qray.engines.registry.missing_requirement", lambda variant: "not installed")
    found = doctor._try("engine openvino", lambda: doctor._variants("openvino"))
    assert (found.state, found.detail.count("not installed")) == ("missing", 1)


@pytest.mark.parametrize("address", ["head-node", "10.0.0.9", "ray://head:10001"])
def test_a_malformed_ray_address_is_a_finding_that_says_host_port(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    found = doctor._try("Ray", doctor._ray)
    assert (found.state, "HOST:PORT" in found.detail, "qray doctor" in found.detail) == ("broken", True, False)


def test_without_a_folder_for_sockets_the_finding_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("qray.scratch.writable", lambda folder: False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    found = doctor._try("Ray", doctor._ray)
    assert (found.state, "set RAY_TMPDIR to" in found.detail, "qray doctor" in found.detail) == ("broken", True, False)


def test_the_dashboard_is_named_with_what_its_page_asks_for(findings: dict[str, Finding]) -> None:
    assert "asks for a token, which `ray get-auth-token` prints" in findings["Ray"].detail


def test_what_is_missing_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: GOOD)
    commands.run_doctor(as_json=False)


def test_what_is_broken_is_a_failure_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: BROKEN)
    with pytest.raises(QrayError, match="broken here: Ray") as caught:
        commands.run_doctor(as_json=False)
    assert caught.value.exit_code == 1


def test_json_lists_every_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: GOOD)
    commands.run_doctor(as_json=True)
    assert json.loads(capsys.readouterr().out)[1] == {
        "topic": "engine openvino", "state": "missing", "detail": "not installed"
    }  # fmt: skip


def test_details_are_printed_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=100)
    print_findings([Finding("packages", "ok", "pip install qray[onnx] at [red]")], console)
    assert isinstance(console.file, io.StringIO)
    assert "qray[onnx] at [red]" in console.file.getvalue()


def test_encoders_keep_their_reports_to_themselves() -> None:
    # In a process of its own: an encoder asks once how much it may say, and other tests may have used it already.
    code = "import os; from qray import doctor; doctor._video(); print(getattr(os, 'sched_getscheduler', int)(0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    # Nor do they leave the process, and the Ray that it starts next, at real-time priority, as SVT-AV1 does to root.
    assert int(done.stdout) == getattr(os, "SCHED_OTHER", 0)


def test_a_codec_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonesuch"):
        doctor._round_trip("nonesuch", "yuv420p", "avi", tmp_path)
