"""`qray submit`: the same run as a job on a cluster, through Ray's job API.

What the job needs is put into a folder of its own and sent: this package, the study if it is a file, the model if it
was imported. Whatever else lies in the current folder stays here: data is read where the nodes see it.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from qray.jobs import on_head
from qray.errors import QrayError, UsageError
from qray.model.folder import model_files
from qray.ray_address import ask_dashboard, dashboard_address
from qray.ray_token import use_token_at_dashboard
from qray.scratch import scratch_folder
from qray.study import Study
from qray.study_files import load_study, workflow_folder
from qray.study_model import Imported

POLL_S = 1.0
#: A head answers some seconds before the agent that starts jobs is there.
AGENT_TIMEOUT_S = 60.0
NO_AGENT = "No available agent"


@dataclass(frozen=True)
class Request:
    """`qray run all` as it was asked for. `more`: the options that go to the cluster as they are."""

    study: str | None
    data: Path | None
    out: Path | None
    settings: tuple[str, ...]
    more: tuple[str, ...] = ()
    model: Path | None = None

    def check(self) -> Study:
        """Find here what would fail there; the study that is asked for.

        Raises:
            UsageError: the study or its model is bad, or data lies where only this folder's neighbours find it.
        """
        study = load_study(self.study, self.settings, model=self.model)
        given = self.data if self.data is not None else study.data.dir
        if given is not None and not os.path.expanduser(given).startswith("/"):
            name = "--data" if self.data is not None else "data.dir"
            raise UsageError(
                f"{name} is {str(given)!r}: the job runs on the cluster, in a folder of its own, and data is not sent "
                "along; give the absolute path under which every node sees it, for example /data/EchoNet-Dynamic"
            )
        return study

    def arguments(self) -> list[str]:
        """The command line of the job, less a study that is sent as a file."""
        found, named = ["run", "all"], None if self.study_file else self.study
        for name, value in (("--study", named), ("--data", self.data), ("--out", self.out)):
            found += [] if value is None else [name, str(value)]
        return [*found, *(part for setting in self.settings for part in ("--set", setting)), *self.more]

    @property
    def study_file(self) -> Path | None:
        """The study's file, where it is not one of those that come with qray."""
        return Path(self.study) if self.study is not None and Path(self.study).suffix in (".yaml", ".yml") else None


def stage(request: Request, study: Study, folder: Path) -> None:
    """Put into `folder` what the job needs: the package with its named studies, what it depends on, the study, the
    model that it names."""
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / "qray", ignore=shutil.ignore_patterns("__pycache__", "workflows"))
    shutil.copytree(workflow_folder(), folder / "qray" / "workflows")
    (folder / on_head.REQUIREMENTS).write_text("\n".join(_requirements()), encoding="utf-8")
    if request.study_file is not None:
        (folder / on_head.STUDY_FOLDER).mkdir()
        shutil.copy(request.study_file, folder / on_head.STUDY_FOLDER)
    if isinstance(study.model, Imported):
        (folder / on_head.MODEL_FOLDER).mkdir()
        for path in model_files(Path(study.model.folder)):
            shutil.copy(path, folder / on_head.MODEL_FOLDER)


def _requirements() -> list[str]:
    """What qray cannot run without, as its own metadata says; nothing where it was never installed here."""
    try:
        return [name for name in metadata.requires("qray") or [] if "extra ==" not in name]
    except metadata.PackageNotFoundError:
        return []


def submit(address: str, request: Request, wait: bool) -> str:
    """Submit the run; return the job's last status. With `wait` its log is printed as it comes.

    Raises:
        QrayError: no cluster answers at `address`. UsageError: the request or the address cannot be right.
    """
    address = dashboard_address(address)
    study = request.check()
    answer = ask_dashboard(address)
    if answer not in ("yes", "token"):
        raise QrayError(
            f"no Ray dashboard answers at {address} ({answer}); `ray start --head` prints its address, and "
            "`ray dashboard cluster.yaml` brings it here"
        )
    use_token_at_dashboard(address)
    # Either would be taken in the place of the address that was given.
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    from ray.job_submission import JobSubmissionClient

    entrypoint = shlex.join(["python", "-m", "qray.jobs.on_head", *request.arguments()])
    try:
        client = JobSubmissionClient(address)
        with scratch_folder("submit") as folder:
            stage(request, study, folder)
            _say_what_is_sent(request, study, folder)
            job = _submit(client, entrypoint, str(folder))
    except (ConnectionError, RuntimeError, OSError) as error:
        raise QrayError(f"no Ray cluster took the job at {address}: {error}") from None
    print(f"job {job}: {entrypoint}", flush=True)
    where = f"--address {address} {job}"
    try:
        if wait:
            asyncio.run(_print_log(client, job, where))
        while not (status := client.get_job_status(job)).is_terminal() and wait:
            time.sleep(POLL_S)
        return str(status.value)
    except KeyboardInterrupt:
        print(f"\njob {job} goes on without you: `ray job logs --follow {where}`; `ray job stop {where}` ends it")
        raise


async def _print_log(client: Any, job: str, where: str) -> None:
    """The log of a job as it comes, to its end or that of the connection."""
    from aiohttp import ClientError

    try:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)
    except (RuntimeError, ClientError) as error:
        print(f"the log broke off ({error}); the job goes on: `ray job logs --follow {where}`", flush=True)


def _say_what_is_sent(request: Request, study: Study, folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) / 2**20
    model = study.model.folder if isinstance(study.model, Imported) else None
    what = ", ".join(str(each) for each in ("qray", request.study_file, model) if each is not None)
    print(f"sends {what} ({len(files)} files, {size:.1f} MB), and nothing else of {Path.cwd()}")
    # An absolute path is taken as it is.
    print(f"output on the head: {on_head.FOLDER / (request.out or Path('runs') / study.name)}", flush=True)


def _submit(client: Any, entrypoint: str, folder: str) -> str:
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        try:
            return str(client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": folder}))
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
