"""What ran where and when, from the records of the units, and how much of the time nothing ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from qray.judge.evidence import Evidence
from qray.judge.timing import Timing
from qray.report.theme import AMBER, BLUE, GREEN, GREY, INK, RED, TEAL, VIOLET, draw
from qray.words.document import Block, Cell, Fold, Paragraph, Picture, figures_grid
from qray.words.figures import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What each kind of unit is to a reader, and its colour; a kind that is not here is drawn as itself.
KINDS = {
    "train": ("training", BLUE), "finetune": ("training", BLUE), "validate": ("evaluation", GREEN),
    "sweep": ("QAT sweep", VIOLET), "trial": ("QAT trials", VIOLET), "build": ("building", TEAL),
    "evaluate": ("evaluation", GREEN), "predict": ("evaluation", GREEN), "mix": ("search for mixed precision", VIOLET),
    "layers": ("sensitivity", RED), "sensitivity": ("sensitivity", RED),
    "measure": ("measurement", AMBER), "costs": ("measurement", AMBER), "memory": ("measurement", AMBER),
    "serve": ("measurement", AMBER),
}  # fmt: skip
#: A second or two between units is the loop that starts them.
LEAST_IDLE_S = 3.0


def meaning(kind: str) -> tuple[str, str]:
    """What a kind of unit is to a reader, and its colour."""
    return KINDS.get(kind, (kind, INK))


def timeline(evidence: Evidence) -> list[Block]:
    """The units of the run on its clock, what kinds of work took, and its phases."""
    found = timeline_of(evidence.units, evidence.timing)
    if found is None:
        return [Paragraph("No unit of this run says when it ran.")]
    hosts = sorted({bar.host for bar in found.bars if bar.host})
    words = (
        f"{len(found.bars)} units of work in {found.length:.0f} s{' on ' * bool(hosts)}{', '.join(hosts)}. No unit ran "
        f"for {found.idle_seconds:.0f} s ({found.idle_seconds / (found.length or 1):.0%}): then the data set was made "
        "and checked, Ray was started, the table was written."
    )
    if found.earlier:
        words += f" {found.earlier} more units are from earlier runs into this folder and are not drawn."
    rows = ((Cell(word), figure(count, 0), figure(seconds, 1)) for word, count, seconds in spans(found))
    grid = figures_grid(("what", "units", "seconds"), rows, "Seconds by kind of work")
    blocks: list[Block] = [Paragraph(words), timeline_plot(found), grid]
    if evidence.timing is not None:
        phases = ((Cell(name), figure(seconds, 1)) for name, seconds in evidence.timing.phases.items())
        blocks.append(Fold("Phases of the run", (figures_grid(("phase", "seconds"), phases, "Phases"),)))
    return blocks


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
    zero = timing.started if timing is not None else min((u["started"] for u in timed), default=0.0)
    last = [u for u in timed if u["started"] >= zero - 1]
    if not last:
        return None
    bars = [
        Bar(
            str(u["kind"]), str(u.get("label") or u["kind"]), str(u.get("node") or "")[:8],
            # Without what stands in brackets: CPU and cores.
            str(u.get("host") or "").partition(" (")[0], float(u["started"] - zero),
            float(u["started"] - zero + u["seconds"]),
        )
        for u in last
    ]  # fmt: skip
    bars.sort(key=lambda bar: (bar.begin, bar.end, bar.label))
    length = max(*(bar.end for bar in bars), timing.total if timing is not None else 0.0)
    return Timeline(tuple(bars), length, _gaps(bars, length), len(timed) - len(last))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _gaps(bars: Sequence[Bar], length: float) -> tuple[tuple[float, float], ...]:
    """Spans of at least LEAST_IDLE_S seconds that no bar covers; bars are in order of their begin."""
    reached = accumulate((bar.end for bar in bars), max, initial=0.0)
    begins = [*(bar.begin for bar in bars), length]
    return tuple((end, begin) for end, begin in zip(reached, begins, strict=True) if begin - end >= LEAST_IDLE_S)


def timeline_plot(timeline: Timeline) -> Picture:
    """One row a unit, in order of their begin, by node; phases without units shaded."""
    several = len({bar.node for bar in timeline.bars if bar.node}) > 1
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

    said = ", ".join(f"{word} {seconds:.0f} s" for word, _, seconds in spans(timeline))
    alt = (
        f"{len(bars)} units of work over {timeline.length:.0f} s: {said}; nothing ran for {timeline.idle_seconds:.0f} s"
    )
    return draw("timeline", alt, paint, 1.1 + 0.2 * len(bars))


def _name(axes: Axes, row: int, bar: Bar, length: float, several: bool) -> None:
    """The unit's name beside its bar, on the side where there is room."""
    text = f"{bar.label} [{bar.host or bar.node}]" if several and bar.node else bar.label
    right = length - bar.end >= bar.begin
    axes.annotate(text, (bar.end if right else bar.begin, row), (3 if right else -3, 0), textcoords="offset points",
                  va="center", ha="left" if right else "right", fontsize=8.5, color=INK)  # fmt: skip


def spans(timeline: Timeline) -> list[tuple[str, int, float]]:
    """(what, units, seconds) by what units are to a reader, the longest first."""
    found: dict[str, list[float]] = {}
    for bar in timeline.bars:
        found.setdefault(meaning(bar.kind)[0], []).append(bar.end - bar.begin)
    return sorted(((word, len(all_), sum(all_)) for word, all_ in found.items()), key=lambda item: -item[2])
