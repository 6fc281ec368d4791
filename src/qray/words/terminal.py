"""What a page is made of, in a terminal: sentences in their colours, and tables; and answers as JSON."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qray.escape import as_called
from qray.terminal import open_console
from qray.words.document import Grid

STYLES = {"good": "green", "bad": "red", "unsure": "yellow"}
#: Blanks between two columns.
GAP = 2
PIPE_WIDTH = 160


def results_console() -> Console:
    """Standard output; a file or pipe, which has no width, gets every column."""
    console = open_console()
    return console if console.is_terminal else open_console(width=PIPE_WIDTH, soft_wrap=True)


def style_of(tone: str) -> str:
    """How a terminal shows a tone; what is none is a style of rich."""
    return STYLES.get(tone, tone)


def say(console: Console, text: str, tone: str = "") -> None:
    """A line. Words of users are no markup."""
    console.print(Text(text, style_of(tone)))


def table_of(grid: Grid, folding: Container[int] = (), title: str | Text | None = None, caption: str = "") -> Table:
    """A grid; what is too long for its column is cut off, but in the columns `folding` goes on in the next line."""
    table = Table(
        box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0), title=title, title_justify="left",
        title_style="bold", caption=caption or None, caption_justify="left", caption_style="dim",
    )  # fmt: skip
    for at, name in enumerate(grid.header):
        table.add_column(name, justify="right" if at in grid.numeric else "left", no_wrap=at not in folding,
                         overflow="fold" if at in folding else "ellipsis")  # fmt: skip
    for row in grid.rows:
        table.add_row(*(Text(cell.text, style_of(cell.tone)) for cell in row))
    return table


def to_json(content: Any) -> str:
    """A finding, whole; null for what is not known."""
    plain = content if isinstance(content, dict | list) else asdict(content)
    return json.dumps(_called(plain), indent=1, allow_nan=False)


def _called(value: Any) -> Any:
    """With folders called as people call them."""
    if isinstance(value, dict):
        return {name: _called(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_called(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float) else as_called(str(value))
