"""What `qray submit` starts on the cluster: says what that lacks, then runs `qray` in a folder that outlives the job.

Written for any Python 3, and imports nothing but Python's own until it knows what is there.
"""

from __future__ import annotations

import os
import re
import sys
from importlib import metadata
from pathlib import Path

#: Beside the package that was shipped: what it needs, one requirement a line; the study that was given as a file; and
#: the model that was imported.
REQUIREMENTS, STUDY_FOLDER, MODEL_FOLDER = "requirements.txt", "study", "model"
#: Where a job works: OUT and a synthetic data set go there unless the command line names other places.
FOLDER = Path("~/qray-jobs")
PYTHON = (3, 11)


def lacking(requirements: list[str]) -> list[str]:
    """The requirements that this Python does not have installed. Versions are not compared."""
    missing = []
    for requirement in requirements:
        try:
            metadata.version(re.split(r"[\[<>=!~ ;]", requirement, maxsplit=1)[0])
        except metadata.PackageNotFoundError:
            missing.append(requirement)
    return missing


def fault(shipped: Path) -> str | None:
    """Why no run can begin here, in a sentence that says what to do."""
    here = f"the job's Python is {sys.executable}, version {'.'.join(map(str, sys.version_info[:3]))}"
    advice = "start the head (`ray start --head`) in an environment that has it: jobs run the `python` of its PATH"
    if sys.version_info < PYTHON:
        return f"{here}; qray needs {'.'.join(map(str, PYTHON))} or newer; {advice}"
    missing = lacking((shipped / REQUIREMENTS).read_text(encoding="utf-8").splitlines())
    if missing:
        packages = " ".join(f"'{name}'" for name in missing)
        return f"{here}; it lacks {packages}: {sys.executable} -m pip install {packages}; or {advice}"
    return None


def main() -> None:
    """Run `qray ARGUMENTS` with the study and the model that were shipped."""
    shipped = Path.cwd()
    reason = fault(shipped)
    if reason is not None:
        sys.exit(f"error: {reason}")
    arguments = sys.argv[1:]
    for study in (shipped / STUDY_FOLDER).glob("*"):
        arguments += ["--study", str(study)]
    if (shipped / MODEL_FOLDER).is_dir():
        arguments += ["--model", str(shipped / MODEL_FOLDER)]
    folder = FOLDER.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
    except OSError as error:
        sys.exit(f"error: {folder} on the head cannot be made ({error.strerror}); start the head with another HOME")
    from qray import cli

    sys.argv = ["qray", *arguments]
    cli.main()


if __name__ == "__main__":
    main()
