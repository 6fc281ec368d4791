"""Words that users chose come out as they are: in Markdown, in a shell, in a terminal, and as nothing else."""

from __future__ import annotations

import html
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.table import Table

from qray.escape import command, markdown, visible
from qray.terminal import open_console

WORDS = [
    "<b onclick=alert(1)>EF", "a|b", "*EF* _x_ __y__ ~~z~~", "snake_case_name", "[text](javascript:alert(1))",
    "![x](http://example.org/x.png)", "a ` <i>", "`<i>`", "``<i>", "&lt;b&gt; &amp;", "# EF", "- EF", "+ EF",
    "1. EF", "1) EF", "=EF", "a \\ b \\", "$x^2$", "<!-- EF", "<https://example.org>", "10% of it", "\\`<b>`",
]  # fmt: skip
FOLDERS = [
    "runs/a b", "it's", '"quoted"', "$HOME `id` $(id) ;&|", "-rf", "Ergebnisse-é-한국어", "line\nbreak\ttab",
    "back\\slash", "\x1b[31mred\x1b[0m", "it's\n\\x0a",
]  # fmt: skip


@pytest.mark.parametrize("words", WORDS)
def test_markdown_reads_as_the_words_do(words: str) -> None:
    shown = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown(words))
    assert html.unescape(shown) == f"<p>{words}</p>\n"
    assert "<" not in shown.removeprefix("<p>").removesuffix("</p>\n")


@pytest.mark.parametrize("words", WORDS)
def test_a_cell_of_a_markdown_table_stays_one_cell(words: str) -> None:
    table = f"| {markdown(words)} | end |\n|---|---|\n| {markdown(words)} | end |\n"
    shown = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(table)
    assert shown.count("<th>") == shown.count("<td>") == 2


def test_a_command_between_backticks_is_code_in_markdown() -> None:
    assert markdown("`qray show runs/a` *prints* it") == "`qray show runs/a` \\*prints\\* it"


def test_text_of_several_lines_is_one_line_of_markdown() -> None:
    assert markdown("EF\n# Ship it\r\n---") == "EF # Ship it\\\\r ---"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_command_can_be_pasted_into_a_shell(folder: str) -> None:
    pasted = command("printf", "%s", Path(folder))
    printed = subprocess.run(["bash", "-c", pasted], capture_output=True, check=True, text=True).stdout
    assert Path(printed) == Path(folder)
    assert pasted == visible(pasted)
    assert "\n" not in pasted


def test_a_folder_that_looks_like_an_option_is_a_folder() -> None:
    assert shlex.split(command("qray", "show", Path("-rf"))) == ["qray", "show", "./-rf"]


def test_an_escape_sequence_is_shown_rather_than_obeyed() -> None:
    shown = r"\x1b[2J\x9b2J\x07 \u202egnp.exe \udc80 Ärger"
    assert visible("\x1b[2J\x9b2J\x07 \u202egnp.exe \udc80 Ärger\n") == f"{shown}\n"


def test_a_console_takes_words_for_words() -> None:
    file = io.StringIO()
    console = open_console(file=file, force_terminal=True, width=200)
    grid = Table("[red]head", box=None)
    grid.add_row("[bold]cell[/] :smile: \x1b]0;title\x07")
    console.print("[blink]line[/] \x1b[2J", style="green")
    console.print(grid)
    told = file.getvalue()
    words = ("[blink]line[/] \\x1b[2J", "[red]head", "[bold]cell[/] :smile: \\x1b]0;title")
    assert [word for word in words if word not in told] == []
    # Its own styles are the only sequences.
    assert set(re.findall("\x1b.{3}", told)) == {"\x1b[32", "\x1b[0m", "\x1b[1m"}
