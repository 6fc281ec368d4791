"""The connection to a cluster's jobs through its dashboard: start, list, follow and stop."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from qray.errors import QrayError
from qray.locks import JOB
from qray.ray_address import ask_dashboard, dashboard_address
from qray.ray_token import use_token_at_dashboard

POLL_S = 1.0
#: A head answers some seconds before the agent that starts jobs is there.
AGENT_TIMEOUT_S = 60.0
NO_AGENT = "No available agent"
#: How long a connection that broke is sought again, and how often.
LOST_S, RETRY_S = 120.0, 3.0
#: A running job says something every 20 s. Where nothing has come for longer than this, the line may be dead though
#: nobody closed it (a laptop that slept, a NAT that forgot it), and is opened anew.
QUIET_S = 60.0
#: In the metadata of a job of qray: "run" or "fetch"; what it runs; where it writes.
KIND, STUDY, OUT = "qray", "qray_study", "qray_out"
#: Seconds from SIGTERM to SIGKILL that a job is given to end in order, in place of Ray's 3.
END_S = 60
#: What Ray calls the end of a job.
SUCCEEDED, STOPPED = "SUCCEEDED", "STOPPED"


class JobClient:
    """The jobs of the cluster whose dashboard is at an address.

    Raises:
        QrayError: no dashboard answers there. UsageError: it is no such address.
    """

    def __init__(self, address: str) -> None:
        self.address = dashboard_address(address)
        answer = ask_dashboard(self.address)
        if answer not in ("yes", "token"):
            raise QrayError(
                f"no Ray dashboard answers at {self.address} ({answer}); `ray start --head` prints its address, and "
                "`ray dashboard cluster.yaml` brings it here"
            )
        use_token_at_dashboard(self.address)
        # Either would be taken in the place of the address that was given.
        os.environ.pop("RAY_ADDRESS", None)
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        # Takes seconds to import.
        from ray.job_submission import JobSubmissionClient

        # They tell of each upload and of each end of a log.
        for name in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        try:
            self._client = JobSubmissionClient(self.address)
        except (ConnectionError, RuntimeError, OSError) as error:
            raise QrayError(f"the Ray at {self.address} lets nobody at its jobs: {error}") from None

    def start(self, job: str, entrypoint: str, folder: str, metadata: dict[str, str]) -> None:
        """Start a job under a name of its own; `folder` is sent along.

        Raises:
            QrayError: the cluster did not take it.
        """
        variables = {JOB: job, "RAY_JOB_STOP_WAIT_TIME_S": str(END_S)}
        environment = {"working_dir": folder, "env_vars": variables}
        deadline = time.monotonic() + AGENT_TIMEOUT_S
        while True:
            try:
                self._client.submit_job(
                    entrypoint=entrypoint, submission_id=job, runtime_env=environment, metadata=metadata
                )
            except (ConnectionError, RuntimeError, OSError) as error:
                if NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise QrayError(f"no Ray cluster took the job at {self.address}: {error}") from None
                time.sleep(POLL_S)
            else:
                return

    def runs(self) -> list[Any]:
        """Ray's `JobDetails` of the jobs that `qray submit` has started there, the oldest first."""
        jobs = [job for job in self._asked(self._client.list_jobs) if (job.metadata or {}).get(KIND) == "run"]
        return sorted(jobs, key=lambda job: job.start_time or 0)

    def find(self, job: str) -> Any:
        """Ray's `JobDetails` of a job.

        Raises:
            QrayError: the cluster knows none of this name.
        """
        try:
            return self._asked(self._client.get_job_info, job)
        except RuntimeError as error:
            if "does not exist" not in str(error):
                raise QrayError(f"the cluster at {self.address} says nothing of job {job!r}: {error}") from None
            known = ", ".join(other.submission_id for other in self.runs()) or "none"
            raise QrayError(
                f"the cluster at {self.address} knows no job {job!r} (those of `qray submit` there: {known}); a head "
                "that started anew has forgotten its jobs, and the same `qray submit` goes on from what they finished"
            ) from None

    def log_length(self, job: str) -> int:
        """How many characters a job has printed so far."""
        return len(self._asked(self._client.get_job_logs, job))

    def _asked(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """What the cluster answers; asked anew while the connection is broken.

        Raises:
            QrayError: the connection did not come back. RuntimeError: the cluster answers that it cannot.
        """

        async def once() -> Any:
            try:
                return await asyncio.to_thread(ask, *arguments)
            except OSError as error:
                raise _Lost(error) from None

        return asyncio.run(self._persist(once))

    async def _persist(self, attempt: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Try until it is done, over connections that break, for as long as LOST_S."""
        broken: float | None = None
        while True:
            # Ray's own requests have no time limit.
            answer = await asyncio.to_thread(ask_dashboard, self.address)
            if answer in ("yes", "token"):
                try:
                    return await attempt()
                except _Lost as error:
                    answer = str(error)
            broken = broken or time.monotonic()
            if time.monotonic() - broken > LOST_S:
                raise QrayError(
                    f"the connection to {self.address} broke ({answer}) and did not come back in {LOST_S:.0f} s"
                )
            await asyncio.sleep(RETRY_S)

    def follow(self, job: str, hear: Callable[[str], bool | None], skip: int = 0) -> Any:
        """Hand on a job's log as it comes, each character once; return the job's `JobDetails` at its end, or once
        `hear` says that this is enough.

        skip: characters at its beginning that are left out.

        Raises:
            QrayError: the connection was lost, or the job forgotten.
        """
        return asyncio.run(self._follow(job, hear, skip))

    async def _follow(self, job: str, hear: Callable[[str], bool | None], skip: int) -> Any:
        heard = skip

        async def listen() -> str:
            nonlocal heard
            # Every connection begins at the beginning.
            position, lines = 0, self._client.tail_job_logs(job)
            try:
                while (text := await _next(lines)) is not None:
                    new = text[max(0, heard - position) :]
                    position += len(text)
                    heard = max(heard, position)
                    if new and hear(new):
                        return "enough"
                return "end"
            except TimeoutError:
                return "quiet"
            finally:
                await lines.aclose()

        while True:
            why = await self._persist(listen)
            found = await asyncio.to_thread(self.find, job)
            # Until a job has ended its log has no end: it is the connection's.
            if why == "enough" or (why == "end" and found.status.is_terminal()):
                return found
            await asyncio.sleep(POLL_S)

    def stop(self, job: str) -> bool:
        """Ask a job to end in order; whether it was still running. It is killed if it has not ended in END_S."""
        return bool(self._asked(self._client.stop_job, job))

    def forget(self, job: str) -> None:
        """Take a job that has ended from the cluster's list."""
        self._asked(self._client.delete_job, job)

    def wait_for_end(self, job: str, timeout_s: float) -> Any:
        """A job's `JobDetails` once it has ended, or as it is when the time is over."""
        deadline = time.monotonic() + timeout_s
        while not (found := self.find(job)).status.is_terminal() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return found


class _Lost(Exception):
    """The connection broke; why."""


async def _next(lines: AsyncGenerator[str, None]) -> str | None:
    """The next lines of a log; None at its end.

    Raises:
        TimeoutError: none came. _Lost: the connection broke.
    """
    from aiohttp import ClientError

    try:
        return await asyncio.wait_for(anext(lines), QUIET_S)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        raise
    except (RuntimeError, OSError, ClientError) as error:
        raise _Lost(error) from None
