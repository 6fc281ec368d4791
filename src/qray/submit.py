"""`qray submit`: the same run as a job on a cluster, through Ray's job API."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from typing import Any

from qray.errors import QrayError
from qray.ray_token import use_token_if_asked

POLL_S = 1.0
#: A head answers some seconds before the agent that starts jobs is there.
AGENT_TIMEOUT_S = 60.0
NO_AGENT = "No available agent"


def submit(address: str, arguments: Sequence[str], wait: bool) -> str:
    """Submit `python -m qray run all ARGUMENTS` with the current folder as its working directory.

    Returns the job's last status. With `wait` its log is printed as it comes.

    Raises:
        QrayError: no cluster answers at `address`.
    """
    use_token_if_asked(address)
    from ray.job_submission import JobStatus, JobSubmissionClient

    entrypoint = shlex.join(["python", "-m", "qray", "run", "all", *arguments])
    try:
        client = JobSubmissionClient(address)
        job = _submit(client, entrypoint)
    except (ConnectionError, RuntimeError, OSError) as error:
        raise QrayError(f"no Ray cluster took the job at {address}: {error}") from None
    print(f"job {job}: {entrypoint}", flush=True)
    shown = 0
    while True:
        status = client.get_job_status(job)
        ended = status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
        if wait:
            log = client.get_job_logs(job)
            print(log[shown:], end="", flush=True)
            shown = len(log)
        if ended or not wait:
            return str(status.value)
        time.sleep(POLL_S)


def _submit(client: Any, entrypoint: str) -> str:
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        try:
            return str(client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": "."}))
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
