"""What a report is made of, so that the page and the Markdown say the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

#: How a word or figure is coloured: the name of a CSS class. Colour never carries meaning alone.
Tone = Literal["", "good", "bad", "unsure", "dim"]


@dataclass(frozen=True)
class Cell:
    """One cell of a grid; `order` is what its column is sorted by, None where the text will do."""

    text: str
    tone: Tone = ""
    order: float | None = None


@dataclass(frozen=True)
class Paragraph:
    """A sentence or more."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Bullets:
    """Short sentences that belong together."""

    items: tuple[str, ...]
    tone: Tone = ""


@dataclass(frozen=True)
class Grid:
    """A table. numeric: numbers of the columns that are aligned right; strong: numbers of the rows to stand out."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    label: str
    numeric: frozenset[int] = frozenset()
    strong: frozenset[int] = frozenset()


def figures_grid(header: Sequence[str], rows: Iterable[tuple[Cell, ...]], label: str) -> Grid:
    """A table with figures in all columns but the first."""
    return Grid(tuple(header), tuple(rows), label, frozenset(range(1, len(header))))


@dataclass(frozen=True)
class Picture:
    """A plot, drawn once.

    name: of its PNG file in report/, without the ending. alt: what it shows, for those who do not see it.
    svg: for a page, with colours that follow the page's scheme; png: in the light scheme.
    """

    name: str
    alt: str
    svg: str
    png: bytes
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Plots side by side; wide: plots of full size, two in a row where there is room."""

    pictures: tuple[Picture, ...]
    wide: bool = False


@dataclass(frozen=True)
class ClipCard:
    """One clip: its frames as JPEG, none where the video cannot be had, and what is said of it."""

    clip: str
    frames: tuple[bytes, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Clips:
    """Clips side by side."""

    cards: tuple[ClipCard, ...]


@dataclass(frozen=True)
class Code:
    """Text as it is in a file."""

    text: str
    language: str


@dataclass(frozen=True)
class Fold:
    """What few readers need: closed at first."""

    summary: str
    blocks: tuple[Block, ...]


Block: TypeAlias = Paragraph | Bullets | Grid | Picture | Gallery | Clips | Code | Fold


@dataclass(frozen=True)
class Section:
    """A part of the report under a heading; anchor: its id on the page."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Headline:
    """The verdict: one line of a few words, the sentences that carry it, and its tone."""

    title: str
    sentences: tuple[str, ...]
    tone: Tone = ""


@dataclass(frozen=True)
class Document:
    """A report. about: where the figures come from, in a line; notes: what the run as a whole cannot carry."""

    title: str
    about: str
    headline: Headline
    notes: tuple[str, ...] = ()
    sections: tuple[Section, ...] = field(default=())


def pictures(blocks: tuple[Block, ...]) -> list[Picture]:
    """All plots among blocks, in order."""
    found: list[Picture] = []
    for block in blocks:
        if isinstance(block, Picture):
            found.append(block)
        elif isinstance(block, Gallery):
            found.extend(block.pictures)
        elif isinstance(block, Fold):
            found.extend(pictures(block.blocks))
    return found
