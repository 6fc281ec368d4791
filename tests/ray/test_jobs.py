"""A run as a job of a running Ray that asks for a token."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.runs import FP32_ALONE, RUN_TIMEOUT_S, TINY, environment, free_port, qray, results, units, wait_until

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
        """Where `qray submit` has a job write; the other job writes there before, so that it need not train again."""
        return self.home / "qray-jobs" / "runs" / "tiny"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A `ray start --head` of this test's own, which asks for a token, ended by ending its processes."""
    token = tmp_path_factory.mktemp("token") / "auth_token"
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    # A job runs `python`, which is this environment's, as if it were activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with_token = environment(RAY_AUTH_TOKEN_PATH=str(token), PATH=path)
    port, dashboard, scratch = free_port(), free_port(), tempfile.mkdtemp(prefix="r")
    home = tmp_path_factory.mktemp("home")
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
        f"--dashboard-port={dashboard}", f"--metrics-export-port={free_port()}", "--disable-usage-stats",
        # Two Rays of one machine share this port's default, and the second then takes no jobs.
        f"--dashboard-agent-listen-port={free_port()}",
        # Short: the path of a socket has at most 107 characters.
        f"--temp-dir={scratch}",
    ]  # fmt: skip
    env = with_token | {"RAY_AUTH_MODE": "token", "HOME": str(home)}
    process = subprocess.Popen(command, env=env, start_new_session=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{dashboard}/api/version", timeout=2).close()
        except urllib.error.HTTPError:
            return True  # it asks for a token: it is there
        except OSError:
            return False
        return True

    try:
        wait_until(answers, "the dashboard of `ray start --head`", 120)
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", with_token, home)
    finally:
        # To the command alone: it ends what it started.
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def test_ray_job_submit_completes(head: Head, tiny_dataset: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(ROOT / "src", work / "src")
    shutil.copy(TINY, work / "tiny.yaml")
    run = ["python", "-m", "qray", "run", "train", "--study", "tiny.yaml", "--data", tiny_dataset, "--out",
           head.out, *FP32_ALONE]  # fmt: skip
    ray_command = Path(sys.executable).parent / "ray"
    done = subprocess.run(
        [ray_command, "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *map(str, run)],
        cwd=work, env=head.env | {"RAY_AUTH_MODE": "token"}, capture_output=True, text=True,
        timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert units(head.out, "train")


def test_qray_submit_follows_the_job_to_its_end(head: Head, tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    shutil.copy(TINY, tmp_path / "work" / "tiny.yaml")
    # More than any job may be sent; and an address that Ray's client would take in the place of the one given.
    (tmp_path / "work" / "big.avi").touch()
    os.truncate(tmp_path / "work" / "big.avi", 620 * 2**20)
    address, env = head.dashboard.removeprefix("http://"), head.env | {"RAY_ADDRESS": "127.0.0.1:9"}
    done = qray("submit", "--address", f" {address}", "--study", "tiny.yaml", "--data", tiny_dataset,
                *FP32_ALONE, cwd=tmp_path / "work", env=env)  # fmt: skip
    assert done.code == 0, done.stdout + done.stderr
    assert "and nothing else of" in done.stdout
    assert "done  evaluate fp32" in done.stdout
    # The job's own folder is gone when it ends.
    assert set(results(head.out)["status"]) == {"ok"}


def test_a_run_attaches_to_a_ray_that_asks_for_a_token(head: Head) -> None:
    code = (
        "from qray.ray_token import use_token_if_asked; use_token_if_asked()\n"
        "import ray; from qray.graph.session import ray_session\n"
        "with ray_session(): print(len(ray.nodes()))"
    )
    env = head.env | {"RAY_ADDRESS": head.address}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1"], done.stderr
