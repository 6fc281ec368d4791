"""Names beside points of a plot, where they cover neither each other nor the points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from qray.report.theme import MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Width of an average character, and height of a line, in units of the font's size.
CHARACTER, LINE = 0.63, 1.15
#: Distances tried, in points, and directions (dx, dy) at each.
REACH = (6.0, 14.0, 20.0, 28.0, 38.0, 50.0)
DIRECTIONS = (
    (1, 0), (-1, 0), (0, 1), (0, -1), (1, 0.7), (1, -0.7), (-1, 0.7), (-1, -0.7), (0.2, 1), (0.2, -1), (-0.2, 1),
    (-0.2, -1),
)  # fmt: skip


@dataclass(frozen=True)
class Label:
    """A name for the point at (x, y), whose error bar goes from low to high, in the units of the axes."""

    x: float
    y: float
    text: str
    colour: str
    bold: bool = False
    low: float | None = None
    high: float | None = None


def place_labels(axes: Axes, labels: Sequence[Label], size_pt: float = 9) -> None:
    """Write each name at the nearest free place, the first ones first; a name that finds none is left out.

    The axes' limits must be set before.
    """
    from matplotlib.transforms import Affine2D, Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    # In points, where distances and the sizes of letters are known.
    to_points = axes.transData + Affine2D().scale(72 / figure.dpi)
    frame = axes.get_window_extent().transformed(Affine2D().scale(72 / figure.dpi))
    places = [to_points.transform((label.x, label.y)) for label in labels]
    dots = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    taken = list(dots)
    for label in labels:
        if label.low is not None and label.high is not None:
            taken.append(Bbox(to_points.transform([(label.x, label.low), (label.x, label.high)])).padded(1, 0))
    for label, (x, y), dot in zip(labels, places, dots, strict=True):
        width, height = CHARACTER * size_pt * len(label.text), LINE * size_pt
        for reach, (dx, dy) in product(REACH, DIRECTIONS):
            left = x + reach * dx - width * (0 if dx > 0 else 1 if dx < 0 else 0.5)
            box = Bbox.from_bounds(left, y + reach * dy - height / 2, width, height)
            covered = any(box.overlaps(other) for other in taken if other is not dot)
            if frame.contains(*box.min) and frame.contains(*box.max) and not covered:
                taken.append(box)
                axes.annotate(
                    label.text, (label.x, label.y), (reach * dx, reach * dy), textcoords="offset points",
                    ha="left" if dx > 0 else "right" if dx < 0 else "center", va="center", fontsize=size_pt,
                    color=label.colour,
                    fontweight="bold" if label.bold else "normal", annotation_clip=False,
                    arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3}
                    if reach > REACH[0] else None,
                )  # fmt: skip
                break
