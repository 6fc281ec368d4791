"""One look for all plots, and the same drawing in the light and the dark scheme of a page."""

from __future__ import annotations

import contextlib
import html
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qray.words.document import Block, Gallery, Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colours of the light scheme by the CSS variable that replaces them on a page; no two may be the same.
LIGHT = {
    "ink": "#1c2430", "muted": "#5a6472", "grid": "#dfe3e8", "paper": "#fefefe",
    "blue": "#2868c8", "green": "#17803f", "red": "#c03030", "amber": "#b06d00", "violet": "#7650b8",
    "teal": "#107f8c", "grey": "#8b95a3", "wash": "#f8e4e2",
}  # fmt: skip
INK, MUTED, GRID, PAPER = LIGHT["ink"], LIGHT["muted"], LIGHT["grid"], LIGHT["paper"]
BLUE, GREEN, RED, AMBER = LIGHT["blue"], LIGHT["green"], LIGHT["red"], LIGHT["amber"]
VIOLET, TEAL, GREY, WASH = LIGHT["violet"], LIGHT["teal"], LIGHT["grey"], LIGHT["wash"]
#: A phone of 390 px shows a full plot at its own size, so that 9 pt stays legible.
WIDTH_IN, SMALL_IN = 4.7, 3.3
#: Margins of small plots: a tick label of eight characters fits on the left, a label of the axis does not.
LEFT_IN, RIGHT_IN, BOTTOM_IN, TOP_IN = 0.62, 0.1, 0.5, 0.28
#: Of a row of a plot with a name a row.
ROW_IN = 0.27
PNG_DPI = 160

STYLE: dict[str, Any] = {
    "font.size": 10, "font.family": "sans-serif", "axes.titlesize": 10, "axes.labelsize": 10, "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5, "legend.fontsize": 9.5, "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "axes.edgecolor": MUTED, "axes.linewidth": 0.8, "axes.grid": True,
    "grid.color": GRID, "grid.linewidth": 0.7, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": PAPER, "legend.frameon": False,
    "svg.fonttype": "none", "path.simplify": False, "text.parse_math": False, "savefig.facecolor": "auto",
}  # fmt: skip


def draw(
    name: str, alt: str, paint: Callable[[Figure], None], height_in: float, width_in: float = WIDTH_IN,
    caption: str = "",
) -> Picture:  # fmt: skip
    """A plot as SVG and PNG. The same call gives the same bytes.

    Small plots have fixed margins: there are dozens of them, and a layout costs as much as the drawing.
    """
    import_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    # The salt names clip paths and markers; the plot's name in it keeps those of two plots on a page apart.
    style: Any = STYLE | {"svg.hashsalt": name}
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A letter that the font lacks, in the name of a column: a box in the PNG, right on the page.
        warnings.simplefilter("ignore")
        # Whatever the user's own matplotlibrc says, the same run gives the same plots.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        small = width_in <= SMALL_IN
        figure = Figure(figsize=(width_in, height_in), layout=None if small else "constrained")
        if small:
            figure.subplots_adjust(
                left=LEFT_IN / width_in, right=1 - RIGHT_IN / width_in, bottom=BOTTOM_IN / height_in,
                top=1 - TOP_IN / height_in,
            )  # fmt: skip
        paint(figure)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
        # Laid out once: the second drawing takes the first one's places.
        figure.set_layout_engine("none")
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Picture(name, alt, inline(svg.getvalue(), name, alt), png.getvalue(), caption)


def import_matplotlib() -> None:
    """Import matplotlib as if its user had never set it up.

    MPLBACKEND may name the backend of a notebook that this environment lacks, and one of the places of a matplotlibrc
    hold what is no text: either ends the import. The first place is the working folder, so that it is left meanwhile.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            Path("matplotlibrc").touch()
            import matplotlib  # noqa: F401
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def inline(svg: str, name: str, alt: str) -> str:
    """An SVG file as an element of a page: colours as CSS variables, ids of its own, no metadata, fewer digits."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style type=\"text/css\">.*?</style>", "", body, flags=re.S)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', body)
    assert box is not None, "matplotlib writes a viewBox"
    opening = f'<svg viewBox="{box[0][9:-1]}" role="img" aria-label="{html.escape(alt)}" class="plot">'
    # In tags alone: words between them are those of the plot, whatever they look like.
    return opening + re.sub(r"<[^>]+>", lambda tag: _tag(tag[0], name), re.sub(r"^<svg[^>]*>", "", body))


def _tag(body: str, name: str) -> str:
    for variable, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r'id="', f'id="{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", body)
    # In coordinates alone: what else has digits needs them.
    return re.sub(r'\b(d|x|y|transform)="[^"]*"', lambda found: re.sub(r"(\d\.\d)\d+", r"\1", found[0]), body)


def gallery(*drawn: Picture | None, wide: bool = False) -> list[Block]:
    """The plots that there are, side by side; nothing where there is none."""
    plots = tuple(plot for plot in drawn if plot is not None)
    return [Gallery(plots, wide)] if plots else []
