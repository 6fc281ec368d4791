"""The report behind the command line: `qray report`, and the page that every full run ends with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from qray.errors import QrayError
from qray.escape import command, visible

if TYPE_CHECKING:
    from qray.judge.evidence import Evidence
    from qray.words.document import Document


def report_run(out: Path, data: Path | None) -> None:
    """`qray report`: prints where the page is, and the verdict.

    Raises:
        QrayError: OUT is not the output of a run, or `data` is no folder.
    """
    from qray.judge.judge import read_evidence

    if data is not None and not data.is_dir():
        raise QrayError(f"{data}: no such folder; --data names the data set's folder")
    document, page = _write(read_evidence(out), data)
    print(visible(f"{document.headline.title}. {document.headline.sentences[0]}\nReport: {page}"))


def _write(evidence: Evidence, data: Path | None) -> tuple[Document, Path]:
    """The report and its page; without `data` the pictures come from the study's own data set."""
    from qray.orchestrate.data_set import data_folder
    from qray.report.sections import compose
    from qray.report.write import write_document

    document = compose(evidence, data or data_folder(evidence.study.data))
    return document, write_document(document, evidence.out)


def report_finished_run(evidence: Evidence, console: Console) -> str | None:
    """Write the report at the end of a run; whatever goes wrong is returned as a sentence, since the run is done."""
    try:
        _, page = _write(evidence, None)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        return f"the report was not written ({why}); `{command('qray', 'report', evidence.out)}` tries again"
    console.print(f"Report: {page}", markup=False, highlight=False)
    return None
