"""The parts of a report in the order in which a reader needs them."""

from __future__ import annotations

from pathlib import Path

from qray.answers.changes import hosts_of, versions_of
from qray.answers.pick import Choice
from qray.judge.evidence import Evidence, VariantEvidence
from qray.report.headline import choice_of, headline, own_paths
from qray.report.sections_error import layers_section, parity_blocks, sweep_section
from qray.report.sections_predictions import classes_section, decisions_section, predictions_section
from qray.report.sections_tradeoff import guardrails_section, speed_section, table_section, tradeoff_section
from qray.report.thumbnails import worst_clips
from qray.report.timeline import spans, timeline_of, timeline_plot
from qray.study_files import dump_study
from qray.words.document import Block, Cell, Code, Document, Fold, Grid, Paragraph, Section, figures_grid
from qray.words.figures import counted, figure, number


def compose(evidence: Evidence, data: Path | None = None) -> Document:
    """The whole report. Whatever a run lacks is a sentence in its place.

    data: folder of the data set, for pictures of clips; None if it is not known.
    """
    choice = choice_of(evidence)
    leaders = _leaders(evidence, choice)
    sections: list[Section | None] = [
        table_section(evidence, choice),
        guardrails_section(evidence),
        tradeoff_section(evidence, choice),
        predictions_section(evidence, leaders),
        classes_section(evidence, leaders),
        decisions_section(evidence),
        speed_section(evidence),
        layers_section(evidence),
        _parity_section(evidence),
        sweep_section(evidence),
        _timeline_section(evidence),
        _worst_section(evidence, leaders, data),
        _rejected_section(evidence),
        _facts_section(evidence),
    ]
    notes = [own_paths(evidence, note) for note in (choice.notes if choice is not None else evidence.notes)]
    return Document(
        title=f"qray report: {evidence.study.name}", about=_about(evidence), headline=headline(evidence, choice),
        notes=tuple(dict.fromkeys(notes)), sections=tuple(section for section in sections if section is not None),
    )  # fmt: skip


def _leaders(evidence: Evidence, choice: Choice | None) -> list[VariantEvidence]:
    """The variants worth a first look: FP32, the picked one, the runner-up; else the first ones compared."""
    by_name = {variant.name: variant for variant in evidence.variants}
    found = [evidence.reference]
    if choice is not None:
        found += [by_name[c.name] for c in (choice.picked, choice.runner_up) if c is not None and c.name in by_name]
    rest = [v for v in evidence.variants if v.clips is not None and v not in found]
    return (found + rest)[: max(len(found), 3)]


def _row_fact(evidence: Evidence, name: str) -> object:
    return next((getattr(v.row, name) for v in evidence.variants if getattr(v.row, name) is not None), None)


def _about(evidence: Evidence) -> str:
    """Data, machine and time in a line."""
    clips = _row_fact(evidence, "n_clips")
    split = _row_fact(evidence, "split")
    host = hosts_of(evidence).get("host")
    made = _row_fact(evidence, "created_at")
    parts = [f"{clips} {split} clips" if clips is not None else ""]
    parts.append(f"latency on {host}" if host and _row_fact(evidence, "latency_p50_ms") is not None else "")
    when = getattr(made, "strftime", None)
    parts.append(f"table of {when('%Y-%m-%d %H:%M')} UTC" if when is not None else "")
    return "; ".join(part for part in parts if part) or "No figures"


def _parity_section(evidence: Evidence) -> Section | None:
    blocks = parity_blocks(evidence)
    return Section("parity", "Simulated and deployed predictions", tuple(blocks)) if blocks else None


def _timeline_section(evidence: Evidence) -> Section:
    title = "What ran where"
    timeline = timeline_of(evidence.units, evidence.timing)
    if timeline is None:
        return Section("timeline", title, (Paragraph("No unit of this run says when it ran."),))
    share = timeline.idle_seconds / timeline.length if timeline.length > 0 else 0.0
    hosts = sorted({bar.host for bar in timeline.bars if bar.host})
    words = (
        f"{len(timeline.bars)} units of work in {timeline.length:.0f} s"
        + (f" on {', '.join(hosts)}" if hosts else "")
        + f". No unit ran for {timeline.idle_seconds:.0f} s ({share:.0%}): then the data set was made and checked, "
        "Ray was started, the table was written."
    )
    if timeline.earlier:
        words += f" {timeline.earlier} more units are from earlier runs into this folder and are not drawn."
    rows = ((Cell(word), figure(count, 0), figure(seconds, 1)) for word, count, seconds in spans(timeline))
    grid = figures_grid(("what", "units", "seconds"), rows, "Seconds by kind of work")
    blocks: list[Block] = [Paragraph(words), timeline_plot(timeline), grid]
    if evidence.timing is not None:
        phases = ((Cell(name), figure(seconds, 1)) for name, seconds in evidence.timing.phases.items())
        blocks.append(Fold("Phases of the run", (figures_grid(("phase", "seconds"), phases, "Phases"),)))
    return Section("timeline", title, tuple(blocks))


def _worst_section(evidence: Evidence, leaders: list[VariantEvidence], data: Path | None) -> Section:
    shown = next((v for v in leaders if v is not evidence.reference and v.clips is not None), None)
    shown = shown or next((v for v in leaders if v.clips is not None), None)
    if shown is None:
        return Section("worst", "Worst clips", (Paragraph("There are no predictions to choose clips by."),))
    return Section("worst", "Worst clips", tuple(worst_clips(shown, evidence.study, data)))


def _rejected_section(evidence: Evidence) -> Section:
    rejected = evidence.rejected
    if rejected.empty:
        return Section("rejected", "Rejected clips", (Paragraph("No clip was left out."),))
    rows = tuple(
        (Cell(str(row["row"]), order=float(row["row"])), Cell(str(row["clip"])), Cell(str(row["reason"])))
        for row in rejected.to_dict("records")
    )
    grid = Grid(("line", "clip", "reason"), rows, "Rejected clips", frozenset({0}))
    words = f"{counted(len(rows), 'row')} of the file list could not be used, each for its own reason."
    shown: Block = grid if len(rows) <= 20 else Fold(f"All {len(rows)}", (grid,))
    return Section("rejected", "Rejected clips", (Paragraph(words), shown))


def _facts_section(evidence: Evidence) -> Section:
    rows = []
    for name, title in (("host", "host"), ("device", "device"), ("cpu_flags", "CPU flags"),
                        ("load_average", "load average before measuring")):  # fmt: skip
        value = hosts_of(evidence).get(name) or _row_fact(evidence, name)
        if value not in (None, ""):
            rows.append((Cell(title), Cell(number(value) if isinstance(value, float) else str(value))))
    rows += [(Cell(name), Cell(version)) for name, version in sorted(versions_of(evidence).items())]
    blocks: list[Block] = [Grid(("what", "value"), tuple(rows), "Host and versions")] if rows else []
    blocks.append(Fold("The study, as resolved (YAML)", (Code(dump_study(evidence.study), "yaml"),)))
    return Section("facts", "Study, versions and host", tuple(blocks))
