"""A run as a job of a running Ray that asks for a token."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from support.runs import (
    END_TIMEOUT_S,
    FP32_ALONE,
    RUN_TIMEOUT_S,
    TINY,
    Finished,
    environment,
    free_port,
    main_here,
    qray,
    results,
    units,
    wait_until,
)  # fmt: skip

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Head:
    """A running Ray: its address, its dashboard, an environment that holds its token, and the home of its jobs."""

    address: str
    dashboard: str
    env: dict[str, str]
    home: Path

    @property
    def out(self) -> Path:
        """Where `qray submit` has a job write."""
        return self.home / "qray-jobs" / "runs" / "tiny"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A `ray start --head` of this test's own, which asks for a token, ended by ending its processes."""
    token = tmp_path_factory.mktemp("token") / "auth_token"
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    # A job runs `python`, which is this environment's, as if it were activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with_token = environment(RAY_AUTH_TOKEN_PATH=str(token), PATH=path)
    port, dashboard, agent, scratch = free_port(), free_port(), free_port(), tempfile.mkdtemp(prefix="r")
    home = tmp_path_factory.mktemp("home")
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
        f"--dashboard-port={dashboard}", f"--metrics-export-port={free_port()}", "--disable-usage-stats",
        # Two Rays of one machine share this port's default, and the second then takes no jobs.
        f"--dashboard-agent-listen-port={agent}",
        # Short: the path of a socket has at most 107 characters.
        f"--temp-dir={scratch}",
    ]  # fmt: skip
    env = with_token | {"RAY_AUTH_MODE": "token", "HOME": str(home)}
    process = subprocess.Popen(command, env=env, start_new_session=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip

    def answers(address: str) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{address}", timeout=2).close()
        except urllib.error.HTTPError:
            return True  # it asks for a token: it is there
        except OSError:
            return False
        return True

    try:
        wait_until(lambda: answers(f"{dashboard}/api/version"), "the dashboard of `ray start --head`", 120)
        # It starts the jobs.
        wait_until(lambda: answers(f"{agent}/api/local_raylet_healthz"), "the agent of `ray start --head`", 120)
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", with_token, home)
    finally:
        # Asked to end, it would take half a minute.
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait(END_TIMEOUT_S)
        psutil.wait_procs(family, END_TIMEOUT_S)


@pytest.mark.slow
def test_ray_job_submit_completes(head: Head, tiny_dataset: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(ROOT / "src", work / "src")
    shutil.copy(TINY, work / "tiny.yaml")
    run = ["python", "-m", "qray", "run", "train", "--study", "tiny.yaml", "--data", tiny_dataset, "--out",
           head.home / "by ray", *FP32_ALONE]  # fmt: skip
    ray_command = Path(sys.executable).parent / "ray"
    done = subprocess.run(
        [ray_command, "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *map(str, run)],
        cwd=work, env=head.env | {"RAY_AUTH_MODE": "token"}, capture_output=True, text=True,
        timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert units(head.home / "by ray", "train")


def name_of(submitted: Finished) -> str:
    """The name of a job, as `qray submit` says it."""
    found = re.search(r"^job (\S+):", submitted.stdout, re.MULTILINE)
    assert found, submitted.stdout + submitted.stderr
    return found[1]


@pytest.fixture(scope="module")
def submitted(head: Head, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A job that was followed to its end."""
    work = tmp_path_factory.mktemp("work")
    shutil.copy(TINY, work / "tiny.yaml")
    # More than any job may be sent; and an address that Ray's client would take in the place of the one given.
    (work / "big.avi").touch()
    os.truncate(work / "big.avi", 620 * 2**20)
    address, env = head.dashboard.removeprefix("http://"), head.env | {"RAY_ADDRESS": "127.0.0.1:9"}
    return qray("submit", "--address", f" {address}", "--study", "tiny.yaml", "--data", tiny_dataset,
                *FP32_ALONE, cwd=work, env=env)  # fmt: skip


def test_qray_submit_follows_the_job_to_its_end(head: Head, submitted: Finished) -> None:
    assert submitted.code == 0, submitted.stdout + submitted.stderr
    assert "and nothing else of" in submitted.stdout
    assert "done  evaluate fp32" in submitted.stdout
    # The job's own folder is gone when it ends.
    assert set(results(head.out)["status"]) == {"ok"}


@contextlib.contextmanager
def breaking_line(dashboard: str, after_bytes: int) -> Iterator[tuple[str, list[int]]]:
    """A way to a dashboard on which the first log breaks off: its address, and how many bytes went over each log."""
    host, port = dashboard.removeprefix("http://").split(":")
    logs: list[int] = []

    class Line(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(port))) as there:
                asked = self.request.recv(65536)
                log = len(logs) if b"/logs/tail" in asked else None
                if log is not None:
                    logs.append(0)
                there.sendall(asked)
                while ready := select.select([self.request, there], [], [], 60)[0]:
                    for end in ready:
                        data = end.recv(1024)
                        if not data:
                            return
                        if end is there and log is not None:
                            logs[log] += len(data)
                            if log == 0 and logs[0] > after_bytes:
                                return
                        (self.request if end is there else there).sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Line) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", logs
        server.shutdown()


def test_a_job_is_followed_again_over_a_line_that_breaks(head: Head, submitted: Finished) -> None:
    """Each line is printed once, and the exit code is the job's."""
    with breaking_line(head.dashboard, 1500) as (address, logs):
        again = qray("jobs", "attach", "--address", address, name_of(submitted), env=head.env)
    assert again.code == 0, again.stderr
    assert len(logs) == 2
    assert logs[0] > 1500
    assert [line for line in again.stdout.splitlines() if line not in submitted.stdout.splitlines()] == []
    said = [line for line in submitted.stdout.splitlines() if line.startswith("[")]
    assert [line for line in again.stdout.splitlines() if line.startswith("[")] == said


def test_what_the_answers_read_is_fetched(head: Head, submitted: Finished, tiny_dataset: Path, tmp_path: Path) -> None:
    job, folder = name_of(submitted), tmp_path / "a run"
    fetch = ("jobs", "fetch", job, "--address", head.dashboard, "--to", folder)
    done = qray(*fetch, "--artifact", "fp32", env=head.env)
    assert done.code == 0, done.stderr
    for question in ("show", "pick", "report"):
        there, here = (main_here(question, out) for out in (head.out, folder))
        assert (here.code, here.stdout) == (there.code, there.stdout.replace(str(head.out), str(folder))), question
    assert main_here("diff", head.out, folder).code == 0
    (artifact,) = (folder / "artifacts").iterdir()
    video = next((tiny_dataset / "Videos").iterdir())
    assert main_here("predict", artifact, video).code == 0
    # Neither the checkpoints nor anything that is not asked for.
    assert not (folder / "checkpoints").exists()
    listed = json.loads(qray("jobs", "--address", head.dashboard, "--json", env=head.env).stdout)
    assert [(each["job"], each["status"]) for each in listed] == [(job, "succeeded")]
    missing = qray(*fetch, "--artifact", "nobody", env=head.env)
    assert (missing.code, "no artifact of a variant 'nobody'; those it has: fp32" in missing.stderr) == (1, True)


# Ray Data starts one of each for all jobs of a cluster, with the environment of the first that streams, for good.
RAY_DATAS_OWN = ("ray::_StatsActor", "ray::_AutoscalingCoordinatorActor")


def processes_of(job: str) -> list[int]:
    """Processes that run as a job: its driver and what that has started, workers included, but for RAY_DATAS_OWN."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            own = "".join(process.cmdline()[:1]).strip() in RAY_DATAS_OWN
            if process.environ().get("QRAY_JOB") == job and process.status() != psutil.STATUS_ZOMBIE and not own:
                found.append(process.pid)
    return found


def submit_long(head: Head, data: Path, out: str, *more: object) -> Finished:
    """Submit a run that trains for a while, and do not wait for it."""
    return qray("submit", "--address", head.dashboard, "--no-wait", "--study", TINY, "--data", data, *FP32_ALONE,
                "--set", "training.epochs=4", "--out", out, *more, env=head.env)  # fmt: skip


@pytest.fixture(scope="module")
def stopped(head: Head, tiny_dataset: Path) -> str:
    """A job that was stopped after its first epoch; nobody else may write meanwhile what it writes."""
    job = name_of(submit_long(head, tiny_dataset, "long"))
    out = head.home / "qray-jobs" / "long"
    wait_until(lambda: any(out.glob("checkpoints/*/epoch-*")), "the first epoch of a job")
    assert processes_of(job)
    done = qray("jobs", "stop", job, "--address", head.dashboard, env=head.env)
    assert (done.code, "goes on from what was finished" in done.stdout) == (0, True), done.stderr
    return job


def epochs(log: str) -> set[str]:
    """The epochs of the FP32 training that were finished, as a job says."""
    return set(re.findall(r"epoch (\d)/4, loss", log))


@pytest.mark.slow
def test_a_stopped_job_ends_in_order_and_leaves_no_process(head: Head, stopped: str) -> None:
    wait_until(lambda: not processes_of(stopped), "the end of all processes of a stopped job", END_TIMEOUT_S)
    assert not (head.home / "qray-jobs" / "long" / ".held").exists()
    attached = qray("jobs", "attach", stopped, "--address", head.dashboard, env=head.env)
    assert attached.code == 143
    assert "interrupted; the same command goes on" in attached.stdout


@pytest.mark.slow
def test_a_stopped_job_goes_on_beside_another_and_what_it_writes_no_other_may(
    head: Head, tiny_dataset: Path, stopped: str
) -> None:
    attach = ("jobs", "attach", "--address", head.dashboard)
    before = epochs(qray(*attach, stopped, env=head.env).stdout)
    jobs = [name_of(submit_long(head, tiny_dataset, *more)) for more in (("long",), ("other", "--set", "seed=7"))]
    refused = submit_long(head, tiny_dataset, "long")
    assert (refused.code, f"job {jobs[0]} there writes to" in refused.stderr) == (1, True), refused.stderr
    ended = [qray(*attach, job, env=head.env) for job in jobs]
    assert [each.code for each in ended] == [0, 0], ended[0].stdout + ended[1].stdout
    # Nothing is done twice.
    after = epochs(ended[0].stdout)
    assert (before & after, before | after) == (set(), set("1234"))
    assert epochs(ended[1].stdout) == set("1234")


def test_a_run_attaches_to_a_ray_that_asks_for_a_token(head: Head) -> None:
    code = (
        "from qray.ray_token import use_token_if_asked; use_token_if_asked()\n"
        "import ray; from qray.graph.session import ray_session\n"
        "with ray_session(): print(len(ray.nodes()))"
    )
    env = head.env | {"RAY_ADDRESS": head.address}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1"], done.stderr
