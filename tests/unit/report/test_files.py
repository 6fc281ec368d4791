"""The files of a report: the same for the same run, complete, needing nothing from outside, and safe to open."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from support.reports import report_of, small_run
from typer.testing import CliRunner

from qray.cli import app
from qray.graph.store import CONTENTS
from qray.judge.judge import read_evidence
from qray.questions import report_finished_run
from qray.report.page import to_html, write_document
from qray.report.theme import draw
from qray.words.document import Bullets, Cell, Code, Document, Grid, Headline, Paragraph, Section
from qray.words.markdown import to_markdown

EVIL = "<script>alert('x')</script> & \"quoted\" | `tick`"


@pytest.fixture
def out(full_report: tuple[Path, Document]) -> Path:
    return full_report[0]


def hashes(out: Path) -> dict[str, str]:
    files = [out / "report.html", out / "report.md", *sorted((out / "report").iterdir())]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def evil_document() -> Document:
    grid = Grid(("variant",), ((Cell(EVIL),),), EVIL)
    blocks = (Paragraph(EVIL), Bullets((EVIL,)), grid, Code(f"```\n{EVIL}", "yaml"))
    return Document(EVIL, EVIL, Headline(EVIL, (EVIL,)), (EVIL,), (Section("a", "Title", blocks),))


class Links(HTMLParser):
    """Everything in a page that a browser would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_same_run_gives_the_same_bytes(out: Path) -> None:
    before = hashes(out)
    write_document(report_of(out, out.parent / "set"), out)
    assert hashes(out) == before


def test_the_page_links_to_nothing_outside(out: Path) -> None:
    links = Links((out / "report.html").read_text(encoding="utf-8")).found
    assert len(links) > 10
    assert [link[:40] for link in links if not link.startswith(("#", "data:"))] == []


def test_styles_fetch_nothing(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"@import|url\((?!#)[^)]*\)", page) == []


def test_the_policy_names_the_script_and_forbids_the_rest(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}';" in policy


def test_no_colour_of_a_plot_is_fixed_to_one_scheme(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    plots = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(plots) > 20
    assert {colour for plot in plots for colour in re.findall(r"(?:fill|stroke): (#\w+)", plot)} == set()


def test_markdown_refers_to_pictures_that_are_there(out: Path) -> None:
    named = re.findall(r"\]\((report/[^)]+)\)", (out / "report.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    assert {name for name in named if not (out / name).is_file()} == set()
    assert {file.name for file in (out / "report").iterdir()} == {Path(name).name for name in named}


def test_what_names_and_reasons_hold_is_text_on_the_page() -> None:
    page = to_html(evil_document())
    assert "alert('x')</script>" not in page.replace("&#39;", "'")
    assert page.count("&lt;script&gt;") >= 6


def test_a_column_name_is_text_in_the_plots(tmp_path: Path) -> None:
    out = small_run(tmp_path)
    study = (out / "study.yaml").read_text(encoding="utf-8")
    (out / "study.yaml").write_text(study.replace("target_column: EF", 'target_column: $<b>"E&F$'), encoding="utf-8")
    page = to_html(report_of(out))
    assert '$&lt;b&gt;"E&amp;F$: label' in page
    assert "<b>" not in re.sub("<b>clip-[0-9]+</b>", "", page)


def test_what_names_and_reasons_hold_is_text_in_markdown() -> None:
    text = to_markdown(evil_document(), "report")
    assert r"\<script\>" in text
    table = next(line for line in text.splitlines() if line.startswith("| \\<script"))
    assert len(re.findall(r"(?<!\\)\|", table)) == 2


def test_a_column_name_is_text_in_markdown(tmp_path: Path) -> None:
    out = small_run(tmp_path)
    study = (out / "study.yaml").read_text(encoding="utf-8")
    (out / "study.yaml").write_text(
        study.replace("target_column: EF", "target_column: '<b onclick=x>EF|*'"), encoding="utf-8"
    )
    shown = MarkdownIt("commonmark").enable("table").render(to_markdown(report_of(out), "report"))
    assert "Error by &lt;b onclick=x&gt;EF|* class</h2>" in shown
    assert "<b" not in re.sub("<(body|blockquote)>", "", shown)


def test_words_of_a_plot_are_not_taken_for_its_markup() -> None:
    words = 'id="a" url(#b) #2868c8 1.23456'
    picture = draw("plot", "a plot", lambda figure: figure.suptitle(words) and None, 2.0)
    assert words in picture.svg


def test_a_fence_outlasts_the_fences_in_it() -> None:
    assert "````yaml" in to_markdown(evil_document(), "report")


def test_the_command_says_what_to_ship_and_where_the_page_is(tmp_path: Path) -> None:
    out = small_run(tmp_path / "out")
    done = CliRunner().invoke(app, ["report", str(out)])
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].startswith("Ship ptq-openvino")
    assert str(out / "report.html") in done.stdout


def test_a_finished_run_says_where_its_report_is(tmp_path: Path) -> None:
    out = small_run(tmp_path / "out")
    console = Console(file=io.StringIO(), width=400)
    assert report_finished_run(read_evidence(out), console) is None
    assert isinstance(console.file, io.StringIO)
    assert f"Report: {out / 'report.html'}" in console.file.getvalue()


def test_a_report_that_cannot_be_written_is_a_sentence_with_a_command_to_paste(tmp_path: Path) -> None:
    out = small_run(tmp_path / "it's $out")
    (out / "report.html").mkdir()
    (out / "report.html" / "in the way").touch()
    why = report_finished_run(read_evidence(out), Console(file=io.StringIO()))
    assert why is not None
    assert why.startswith("the report was not written (IsADirectoryError: ")
    (hint,) = re.findall("`(.*)`", why)
    assert shlex.split(hint) == ["qray", "report", str(out)]


def test_fresh_removes_the_report_too() -> None:
    assert {"report.html", "report.md", "report"} <= set(CONTENTS)
