"""`qray jobs`: what `qray submit` has started on a cluster: listed, followed again, stopped, its results fetched."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qray.errors import Ended, QrayError
from qray.escape import visible
from qray.options import FreshOption, JsonOption, ModelOption, SetOption, StudyOption

if TYPE_CHECKING:
    from qray.jobs.client import JobClient

AddressOption = Annotated[str, typer.Option("--address", help="The cluster's dashboard.")]
JobArgument = Annotated[str, typer.Argument(help="A job's name, as `qray submit` and `qray jobs` say it.")]
DASHBOARD = "http://127.0.0.1:8265"
#: A job is killed END_S after it was asked to end; its cluster may need a little longer to say so.
STOP_MARGIN_S = 30.0

jobs_app = typer.Typer(help="Runs that were submitted to a cluster: list, attach, stop, fetch.")


@jobs_app.callback(invoke_without_command=True)
def list_jobs(
    context: typer.Context,
    address: AddressOption = DASHBOARD,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """List the jobs that `qray submit` has started on a cluster, the oldest first."""
    if context.invoked_subcommand is not None:
        return
    from qray.jobs.client import OUT, STUDY, JobClient

    jobs = [
        {
            "job": job.submission_id, "status": state(job), "study": (job.metadata or {}).get(STUDY),
            "out": (job.metadata or {}).get(OUT), "started": (job.start_time or 0) / 1000,
            "seconds": ((job.end_time or time.time() * 1000) - job.start_time) / 1000 if job.start_time else None,
        }
        for job in JobClient(address).runs()
    ]  # fmt: skip
    if as_json:
        print(json.dumps(jobs, indent=1))
        return
    if not jobs:
        print("no job of `qray submit` there")
    for each in jobs:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(each["started"]))
        took = f"{each['seconds']:.0f} s" if each["seconds"] is not None else "-"
        print(visible(f"{each['job']}  {each['status']}  since {began}, {took}  {each['out']}"))


@jobs_app.command("attach")
def attach_job(
    job: JobArgument,
    address: AddressOption = DASHBOARD,
    from_now: Annotated[bool, typer.Option("--from-now", help="Leave out what it has printed so far.")] = False,
) -> None:
    """Follow a job's log again, to its end; ends as the job does, with its exit code."""
    from qray.jobs.client import JobClient

    client = JobClient(address)
    client.find(job)
    end_as(follow(client, job, client.log_length(job) if from_now else 0))


@jobs_app.command("stop")
def stop_job(job: JobArgument, address: AddressOption = DASHBOARD) -> None:
    """End a job in order: what it has finished is kept, and the same `qray submit` goes on from there."""
    from qray.jobs.client import END_S, STOPPED, JobClient

    client = JobClient(address)
    found = client.find(job)
    if found.status.is_terminal() or not client.stop(job):
        print(f"job {job} had ended before ({state(client.find(job))})")
        return
    print(f"job {job} is asked to end, and killed if it has not in {END_S} s", flush=True)
    found = client.wait_for_end(job, END_S + STOP_MARGIN_S)
    if not found.status.is_terminal():
        raise QrayError(
            f"job {job} still runs {END_S + STOP_MARGIN_S:.0f} s after it was asked to end ({state(found)}); its node "
            f"may be gone: `ray job status --address {client.address} {job}`, and the head's logs, say more"
        )
    if found.status.value != STOPPED:
        print(f"job {job} ended by itself meanwhile ({state(found)})")
        return
    print(f"job {job} is stopped; the same `qray submit` goes on from what was finished")


@jobs_app.command("fetch")
def fetch_job(
    job: JobArgument,
    to: Annotated[Path | None, typer.Option("--to", help="Folder to make; default: runs/JOB.")] = None,
    artifacts: Annotated[
        list[str] | None, typer.Option("--artifact", metavar="VARIANT", help="Bring this variant's artifact too.")
    ] = None,
    address: AddressOption = DASHBOARD,
) -> None:
    """Bring a run's table, report, and all that `qray pick`, `show`, `report` and `diff` read, into a local folder."""
    from qray.jobs.client import JobClient
    from qray.jobs.fetch import fetch, fetched_words

    print(visible(fetched_words(fetch(JobClient(address), job, to, tuple(artifacts or ())))))


def state(job: Any) -> str:
    """Of Ray's `JobDetails`: "running", "succeeded", "failed with exit code 2" and so on."""
    code = f" with exit code {job.driver_exit_code}" if job.driver_exit_code else ""
    return f"{job.status.value.lower()}{code}"


def follow(client: JobClient, job: str, skip: int = 0) -> Any:
    """Print a job's log as it comes; return its `JobDetails` at its end. Ctrl-C leaves it running, and says how to come
    back."""
    again = f"`qray jobs attach --address {client.address} {job}` follows it again"
    try:
        return client.follow(job, lambda lines: print(lines, end="", flush=True), skip)
    except KeyboardInterrupt:
        print(f"\njob {job} goes on without you: {again}; `qray jobs stop --address {client.address} {job}` ends it")
        raise
    except QrayError as error:
        raise QrayError(f"{error}; unless the cluster is gone, job {job} goes on: {again}") from None


def end_as(job: Any) -> None:
    """End as a job did.

    Raises:
        Ended: it did not succeed.
    """
    from qray.jobs.client import STOPPED, SUCCEEDED

    if job.status.value == SUCCEEDED:
        return
    code = job.driver_exit_code or (143 if job.status.value == STOPPED else 1)
    # Of a process that a signal ended.
    said = "" if job.driver_exit_code or not job.message else f": {job.message.strip().splitlines()[0]}"
    raise Ended(f"job {job.submission_id} {state(job)}{said}", code if code > 0 else 128 - code)


def submit_job(
    address: AddressOption = DASHBOARD,
    wait: Annotated[bool, typer.Option(help="Follow the job's log until it ends.")] = True,
    study: StudyOption = None,
    model: ModelOption = None,
    data: Annotated[str | None, typer.Option(help="Data set folder, as every node sees it, or its URI.")] = None,
    out: Annotated[
        str | None, typer.Option(help="Output folder on the head, or a URI; default: ~/qray-jobs/runs/<study>.")
    ] = None,
    settings: SetOption = None,
    fresh: FreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run `qray run all` as a job on a cluster. Sends qray, the study and the model, and no data."""
    from qray.jobs.submit import Request, submit

    more = ("--fresh",) * fresh + ("--json",) * as_json
    client, job = submit(address, Request(study, data, out, tuple(settings or ()), more, model))
    if wait:
        end_as(follow(client, job))
