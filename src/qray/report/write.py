"""A report -> report.html, report.md and report/*.png, complete or not at all."""

from __future__ import annotations

from pathlib import Path

from qray.atomic import atomic_path, write_text
from qray.report.page import to_html
from qray.words.document import Document, pictures
from qray.words.markdown import to_markdown

FOLDER = "report"


def write_document(document: Document, out: Path) -> Path:
    """Write a report into its run's OUT, all of report/, report.md and report.html.

    Returns:
        The path of report.html.

    Raises:
        OSError: OUT cannot be written to.
    """
    with atomic_path(out / FOLDER) as folder:
        folder.mkdir()
        for section in document.sections:
            for picture in pictures(section.blocks):
                (folder / f"{picture.name}.png").write_bytes(picture.png)
    write_text(out / "report.md", to_markdown(document, FOLDER))
    page = out / "report.html"
    # Last, so that a page that is there has its companions.
    write_text(page, to_html(document))
    return page
