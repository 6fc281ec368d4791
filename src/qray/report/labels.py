"""Names beside points of a plot, where they cover neither each other nor the points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qray.report.theme import MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]
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
    figure = axes.get_figure()
    assert figure is not None
    figure.draw_without_rendering()  # type: ignore[union-attr]
    points_per_pixel = 72 / figure.dpi
    frame = axes.get_window_extent().get_points() * points_per_pixel
    inside: Box = (frame[0][0], frame[0][1], frame[1][0], frame[1][1])
    places = [axes.transData.transform((label.x, label.y)) * points_per_pixel for label in labels]
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for label in labels:
        if label.low is not None and label.high is not None:
            ends = axes.transData.transform([(label.x, label.low), (label.x, label.high)]) * points_per_pixel
            taken.append((ends[0][0] - 1, ends[0][1], ends[0][0] + 1, ends[1][1]))
    for number, (label, (x, y)) in enumerate(zip(labels, places, strict=True)):
        width, height = CHARACTER * size_pt * len(label.text), LINE * size_pt
        own = taken[number]
        for reach in REACH:
            found = next(
                (
                    (dx, dy, box)
                    for dx, dy in DIRECTIONS
                    if (box := _box(x + reach * dx, y + reach * dy, width, height, dx)) is not None
                    and _within(box, inside)
                    and not any(_overlap(box, other) for other in taken if other is not own)
                ),
                None,
            )
            if found is not None:
                dx, dy, box = found
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


def _box(x: float, y: float, width: float, height: float, dx: float) -> Box:
    left = x if dx > 0 else x - width if dx < 0 else x - width / 2
    return left, y - height / 2, left + width, y + height / 2


def _within(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
