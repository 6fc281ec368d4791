"""Consoles that show what they are given: words of users are neither markup nor escape sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment

from qray.escape import visible


def open_console(**how: Any) -> Console:
    """A rich console without markup, emoji codes, highlighting, and control characters of what is printed.

    how: as `rich.console.Console` takes it.
    """
    console = Console(markup=False, emoji=False, highlight=False, **how)
    console.push_render_hook(_ShowAll())
    return console


class _ShowAll(RenderHook):
    def process_renderables(self, renderables: Sequence[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Shown(renderable) for renderable in renderables]


class _Shown:
    """What is printed; its own styles and movements of the cursor are no part of its text."""

    def __init__(self, what: ConsoleRenderable) -> None:
        self.what = what

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.what, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
