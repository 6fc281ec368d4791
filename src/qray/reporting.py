"""The report behind the command line: `qray report`, and the page that every full run ends with."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from qray.errors import QrayError
from qray.study import Study


def report_run(out: Path, data: Path | None) -> None:
    """`qray report`: prints where the page is, and the verdict.

    Raises:
        QrayError: OUT is not the output of a run, or `data` is no folder.
    """
    from qray.report.sections import compose
    from qray.report.write import write_document
    from qray.results.evidence import read_evidence

    if data is not None and not data.is_dir():
        raise QrayError(f"{data}: no such folder; --data names the data set's folder")
    evidence = read_evidence(out)
    document = compose(evidence, data if data is not None else _data_of(evidence.study))
    page = write_document(document, out)
    print(f"{document.headline.title}. {document.headline.sentences[0]}")
    print(f"Report: {page}")


def _data_of(study: Study | None) -> Path | None:
    from qray.orchestrate.data_set import data_folder

    return data_folder(study.data) if study is not None else None


def report_finished_run(out: Path, study: Study, console: Console) -> None:
    """Write the report at the end of a run; whatever goes wrong is a sentence, since the run itself is done."""
    try:
        from qray.report.sections import compose
        from qray.report.write import write_document
        from qray.results.evidence import read_evidence

        page = write_document(compose(read_evidence(out), _data_of(study)), out)
    except Exception as error:
        text = f"The report was not written ({type(error).__name__}: {error}); `qray report {out}` tries again"
        console.print(text, style="yellow", markup=False, highlight=False)
        return
    console.print(f"Report: {page}", markup=False, highlight=False)
