"""`qray submit`: the same run as a job on a cluster, through Ray's job API.

What the job needs is put into a folder of its own and sent: this package, the study if it is a file, the model if it
was imported. Whatever else lies in the current folder stays here: data is read where the nodes see it.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from qray.errors import QrayError, UsageError
from qray.jobs import on_head
from qray.jobs.client import KIND, OUT, STUDY, JobClient
from qray.model.folder import model_files
from qray.scratch import scratch_folder
from qray.storage.place import is_uri, place_of
from qray.study import Study
from qray.study_files import load_study, workflow_folder
from qray.study_model import Imported


@dataclass(frozen=True)
class Request:
    """`qray run all` as it was asked for. `more`: the options that go to the cluster as they are."""

    study: str | None
    data: Path | str | None
    out: Path | str | None
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
        where = None if given is None else place_of(given, "--data")
        if isinstance(where, Path) and not os.path.expanduser(where).startswith("/"):
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


def stage_package(folder: Path) -> None:
    """Put this package with its named studies into `folder`, and what it depends on."""
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / "qray", ignore=shutil.ignore_patterns("__pycache__", "workflows"))
    shutil.copytree(workflow_folder(), folder / "qray" / "workflows")
    (folder / on_head.REQUIREMENTS).write_text("\n".join(_requirements()), encoding="utf-8")


def stage(request: Request, study: Study, folder: Path) -> None:
    """Put into `folder` what the job needs: the package with its named studies, what it depends on, the study, the
    model that it names."""
    stage_package(folder)
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


def new_name(*words: str) -> str:
    """A name for a job that no other has."""
    return "-".join(("qray", *words, secrets.token_hex(3)))


def out_on_head(request: Request, study: Study) -> str:
    """Where the job writes; an absolute path, and a URI, is taken as it is."""
    out = request.out or f"runs/{study.name}"
    return str(out) if is_uri(out) else str(on_head.FOLDER / out)


def submit(address: str, request: Request) -> tuple[JobClient, str]:
    """Submit the run; return the connection to its cluster, and the job's name.

    Raises:
        QrayError: no cluster answers at `address`, or a job there writes to the same OUT. UsageError: the request or
            the address cannot be right.
    """
    study = request.check()
    client, out = JobClient(address), out_on_head(request, study)
    for other in client.runs():
        if not other.status.is_terminal() and (other.metadata or {}).get(OUT) == out:
            raise QrayError(
                f"job {other.submission_id} there writes to {out} already; follow it with `qray jobs attach --address "
                f"{client.address} {other.submission_id}`, stop it, or name another --out"
            )
    job, entrypoint = new_name(study.name), shlex.join(["python", "-m", "qray.jobs.on_head", *request.arguments()])
    with scratch_folder("submit") as folder:
        stage(request, study, folder)
        _say_what_is_sent(request, study, folder)
        client.start(job, entrypoint, str(folder), {KIND: "run", STUDY: study.name, OUT: out})
    print(f"output on the head: {out}")
    print(f"job {job}: {entrypoint}", flush=True)
    return client, job


def _say_what_is_sent(request: Request, study: Study, folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) / 2**20
    model = study.model.folder if isinstance(study.model, Imported) else None
    what = ", ".join(str(each) for each in ("qray", request.study_file, model) if each is not None)
    print(f"sends {what} ({len(files)} files, {size:.1f} MB), and nothing else of {Path.cwd()}", flush=True)
