"""What ran where and when, from the records of the units, and how much of the time nothing ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qray.judge.timing import Timing
from qray.report.theme import AMBER, BLUE, GREEN, GREY, INK, RED, TEAL, VIOLET, draw
from qray.words.document import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What each kind of unit is to a reader, and its colour; a kind that is not here is drawn as itself.
KINDS = {
    "train": ("training", BLUE), "finetune": ("training", BLUE), "validate": ("evaluation", GREEN),
    "sweep": ("QAT sweep", VIOLET), "trial": ("QAT trials", VIOLET), "build": ("building", TEAL),
    "evaluate": ("evaluation", GREEN), "layers": ("sensitivity", RED), "sensitivity": ("sensitivity", RED),
    "measure": ("measurement", AMBER), "costs": ("measurement", AMBER), "memory": ("measurement", AMBER),
}  # fmt: skip
ROW_IN = 0.2
#: A second or two between units is the loop that starts them.
LEAST_IDLE_S = 3.0


def meaning(kind: str) -> tuple[str, str]:
    """What a kind of unit is to a reader, and its colour."""
    return KINDS.get(kind, (kind, INK))


@dataclass(frozen=True)
class Bar:
    """A unit of work: kind, label, node (short id), host, and its begin and end in seconds since the run began."""

    kind: str
    label: str
    node: str
    host: str
    begin: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """Units of one run in order, its length in seconds, spans in which no unit ran, and units of earlier runs."""

    bars: tuple[Bar, ...]
    length: float
    idle: tuple[tuple[float, float], ...]
    earlier: int

    @property
    def idle_seconds(self) -> float:
        """Seconds in which no unit ran."""
        return sum(end - begin for begin, end in self.idle)


def timeline_of(units: Sequence[Mapping[str, Any]], timing: Timing | None) -> Timeline | None:
    """The last run that did work; without a record of it, all units. None where no unit says when it ran."""
    timed = [u for u in units if _is_number(u.get("started")) and _is_number(u.get("seconds"))]
    start = timing.started if timing is not None else None
    last = [u for u in timed if start is None or u["started"] >= start - 1]
    if not last:
        return None
    zero = start if start is not None else min(u["started"] for u in last)
    bars = sorted(
        (
            Bar(
                str(u["kind"]), str(u.get("label") or u["kind"]), str(u.get("node") or "")[:8],
                # Without what stands in brackets: CPU and cores.
                str(u.get("host") or "").partition(" (")[0], float(u["started"] - zero),
                float(u["started"] - zero + u["seconds"]),
            )
            for u in last
        ),
        key=lambda bar: (bar.begin, bar.end, bar.label),
    )  # fmt: skip
    length = max(bar.end for bar in bars)
    if timing is not None:
        length = max(length, timing.total)
    return Timeline(tuple(bars), length, _gaps(bars, length), len(timed) - len(last))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _gaps(bars: Sequence[Bar], length: float) -> tuple[tuple[float, float], ...]:
    """Spans of at least LEAST_IDLE_S seconds that no bar covers; bars are in order of their begin."""
    gaps, reached = [], 0.0
    for bar in bars:
        if bar.begin - reached >= LEAST_IDLE_S:
            gaps.append((reached, bar.begin))
        reached = max(reached, bar.end)
    if length - reached >= LEAST_IDLE_S:
        gaps.append((reached, length))
    return tuple(gaps)


def timeline_plot(timeline: Timeline) -> Picture:
    """One row a unit, in order of their begin, by node; phases without units shaded."""
    nodes = sorted({bar.node for bar in timeline.bars if bar.node})
    several = len(nodes) > 1
    bars = sorted(timeline.bars, key=lambda bar: (bar.node, bar.begin)) if several else list(timeline.bars)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="seconds since the run began")
        axes.set_xlim(0, timeline.length)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        for begin, end in timeline.idle:
            axes.axvspan(begin, end, color=GREY, alpha=0.22, linewidth=0)
        for row, bar in enumerate(bars):
            axes.barh(row, bar.end - bar.begin, left=bar.begin, height=0.72, color=meaning(bar.kind)[1], linewidth=0)
            _name(axes, row, bar, timeline.length, several)
        axes.set_yticks([])
        axes.grid(axis="y", visible=False)
        for word, colour in dict.fromkeys(meaning(bar.kind) for bar in bars):
            axes.plot([], [], color=colour, linewidth=6, label=word)
        if timeline.idle:
            axes.plot([], [], color=GREY, alpha=0.4, linewidth=6, label="no unit running")
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.2, columnspacing=1.2)

    kinds: dict[str, float] = {}
    for bar in bars:
        word = meaning(bar.kind)[0]
        kinds[word] = kinds.get(word, 0.0) + bar.end - bar.begin
    said = ", ".join(f"{word} {seconds:.0f} s" for word, seconds in kinds.items())
    alt = (
        f"{len(bars)} units of work over {timeline.length:.0f} s: {said}; nothing ran for {timeline.idle_seconds:.0f} s"
    )
    return draw("timeline", alt, paint, 1.1 + ROW_IN * len(bars))


def _name(axes: Axes, row: int, bar: Bar, length: float, several: bool) -> None:
    """The unit's name beside its bar, on the side where there is room."""
    text = f"{bar.label} [{bar.host or bar.node}]" if several and bar.node else bar.label
    room_right = length - bar.end
    if room_right >= bar.begin:
        axes.annotate(text, (bar.end, row), (3, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
    else:
        axes.annotate(text, (bar.begin, row), (-3, 0), textcoords="offset points", va="center", ha="right",
                      fontsize=8.5, color=INK)  # fmt: skip


def spans(timeline: Timeline) -> list[tuple[str, int, float]]:
    """(what, units, seconds) by what units are to a reader, the longest first."""
    found: dict[str, tuple[int, float]] = {}
    for bar in timeline.bars:
        word = meaning(bar.kind)[0]
        count, seconds = found.get(word, (0, 0.0))
        found[word] = (count + 1, seconds + bar.end - bar.begin)
    return sorted(((word, *value) for word, value in found.items()), key=lambda item: -item[2])
