"""What plots are made of: rows with names, figures with their intervals, bars, and dots."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def name_rows(axes: Axes, names: Collection[str], grid: bool = False) -> None:
    """A name for each row, the first at the top."""
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=grid)


def mark(
    axes: Axes, at: float, value: float | None, low: float | None, high: float | None, colour: str, marker: str = "o",
    size: float = 5, line: float = 1.2, upright: bool = False, **look: Any,
) -> None:  # fmt: skip
    """A figure in row `at` (upright: in column `at`) and its interval, each where there is one."""
    if low is not None and high is not None:
        ends, place = [low, high], [at, at]
        axes.plot(*((place, ends) if upright else (ends, place)), color=colour, linewidth=line)
    if value is not None:
        x, y = (at, value) if upright else (value, at)
        axes.plot([x], [y], marker, color=colour, markersize=size, **look)


def bar(axes: Axes, at: float, low: float, high: float, colour: str, label: str | None = None) -> None:
    """A thick line in row `at`; between no numbers it is only named in the legend."""
    axes.plot([low, high], [at, at], color=colour, linewidth=4, solid_capstyle="butt", label=label)


def dots(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    """Points as one path: thousands of markers would make the page megabytes. The axes' limits must be set before.

    A dot is a dash too short to be seen, with round ends.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    low, high = axes.get_xlim()
    corners = np.stack([x, y, x + (high - low) * 1e-3, y], 1).reshape(-1, 2)
    path = Path(corners, np.tile([Path.MOVETO, Path.LINETO], len(x)))
    axes.add_patch(PathPatch(path, fill=False, edgecolor=colour, linewidth=3.2, capstyle="round", alpha=0.55))
