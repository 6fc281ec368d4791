"""The report as one HTML file that needs nothing from outside, with styles, plots, pictures and a script in it; and as
files of OUT, complete or not at all."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from qray.atomic import atomic_path, write_text
from qray.words.document import Document, pictures
from qray.words.markdown import to_markdown

if TYPE_CHECKING:
    from markupsafe import Markup

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


def to_html(document: Document) -> str:
    """The whole page.

    A Content-Security-Policy forbids every request and every script but the page's own, named by its hash (W3C,
    Content Security Policy Level 3, section 6.7.3).
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    # What is marked as ours needs no escape: matplotlib and `theme.inline` escape what they write.
    environment.filters.update(
        base64=_base64, kind=lambda block: type(block).__name__.lower(), prose=_prose, ours=Markup
    )
    script, style = _text("sort.js"), _text("report.css")
    digest = _base64(hashlib.sha256(script.encode()).digest())
    page = environment.get_template("report.html.j2").render(
        document=document, script=Markup(script), style=Markup(style), script_hash=digest
    )
    return page.rstrip() + "\n"


def _text(name: str) -> str:
    return resources.files("qray.report").joinpath("templates", name).read_text(encoding="utf-8")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _prose(text: str) -> Markup:
    """A sentence; what stands between backticks is a command or a file."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))
