"""The report as Markdown; its plots are the PNG files beside it."""

from __future__ import annotations

import re

from qray.escape import markdown
from qray.words.document import Block, Bullets, Clips, Code, Document, Fold, Gallery, Grid, Paragraph, Picture

#: Plots in a row of a gallery.
ACROSS = 3


def to_markdown(document: Document, folder: str) -> str:
    """The whole report; `folder` is where its PNG files are, as seen from the Markdown file."""
    lines = [f"# {markdown(document.title)}", "", f"## {markdown(document.headline.title)}", ""]
    for sentence in document.headline.sentences:
        lines += [markdown(sentence), ""]
    lines += [f"*{markdown(document.about)}*", ""]
    lines += [f"> {markdown(note)}\n" for note in document.notes]
    for section in document.sections:
        lines += [f"## {markdown(section.title)}", ""]
        for one in section.blocks:
            lines += [block(one, folder), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def block(of: Block, folder: str = "") -> str:
    """One block; `folder` as for the whole report."""
    match of:
        case Paragraph():
            return markdown(of.text)
        case Bullets():
            return "\n".join(f"- {markdown(item)}" for item in of.items)
        case Grid():
            return _grid(of)
        case Picture():
            caption = f"\n\n*{markdown(of.caption)}*" if of.caption else ""
            return _image(of, folder) + caption
        case Gallery():
            return _gallery(of, folder)
        case Clips():
            return "\n".join(f"- **{markdown(card.clip)}**: {markdown('; '.join(card.lines))}" for card in of.cards)
        case Code():
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", of.text)), default=0))
            return f"{fence}{of.language}\n{of.text.rstrip()}\n{fence}"
        case Fold():
            return "\n\n".join([f"### {markdown(of.summary)}", *(block(inner, folder) for inner in of.blocks)])


def _image(picture: Picture, folder: str) -> str:
    return f"![{markdown(picture.alt)}]({folder}/{picture.name}.png)"


def _grid(grid: Grid) -> str:
    rules = ["---:" if number in grid.numeric else "---" for number in range(len(grid.header))]
    rows = [
        [f"**{text}**" if at in grid.strong and text else text for text in (markdown(cell.text, True) for cell in row)]
        for at, row in enumerate(grid.rows)
    ]
    head = [markdown(title, True) for title in grid.header]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rules, *rows])


def _gallery(gallery: Gallery, folder: str) -> str:
    images = [_image(picture, folder) for picture in gallery.pictures]
    across = min(1 if gallery.wide else ACROSS, len(images))
    rows = [images[at : at + across] for at in range(0, len(images), across)]
    head = [[""] * across, ["---"] * across]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*head, *rows])
