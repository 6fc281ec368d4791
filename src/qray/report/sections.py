"""The parts of a report in the order in which a reader needs them."""

from __future__ import annotations

from pathlib import Path

from qray.answers.changes import hosts_of, versions_of
from qray.answers.pick import Choice
from qray.judge.evidence import Evidence, VariantEvidence
from qray.report.causes import layers, parity, sweep
from qray.report.devices import devices
from qray.report.headline import choice_of, headline, own_paths
from qray.report.predictions import classes, decisions, predictions
from qray.report.remedies import remedies
from qray.report.service import service
from qray.report.table import guardrails, table
from qray.report.thumbnails import worst
from qray.report.timeline import timeline
from qray.report.tradeoff import speed, tradeoff
from qray.storage.place import Place
from qray.study_files import dump_study
from qray.words.document import Block, Cell, Code, Document, Fold, Grid, Paragraph, Section
from qray.words.figures import counted, number


def compose(evidence: Evidence, data: Path | Place | None = None) -> Document:
    """The whole report. Whatever a run lacks is a sentence in its place.

    data: folder of the data set, for pictures of clips; None if it is not known.
    """
    choice = choice_of(evidence)
    picked = choice.picked.name if choice is not None and choice.picked is not None else None
    leaders = _leaders(evidence, choice)
    parts = (
        ("table", "The table", table(evidence, picked)),
        ("guardrails", "Guardrails beside the mean", guardrails(evidence)),
        ("devices", "Which form where", devices(evidence)),
        ("service", "As a service", service(evidence)),
        ("front", "Accuracy against latency", tradeoff(evidence, picked)),
        ("predictions", "Predictions, clip by clip", predictions(evidence, leaders)),
        ("classes", f"Error by {evidence.study.data.target_column} class", classes(evidence, leaders)),
        ("decisions", "Decisions that turn", decisions(evidence)),
        ("speed", "Where the speed comes from", speed(evidence)),
        ("layers", "Where the error comes from: layers", layers(evidence)),
        ("remedies", "Which remedy gave how much", remedies(evidence)),
        ("parity", "Simulated and deployed predictions", parity(evidence)),
        ("sweep", "QAT sweep", sweep(evidence)),
        ("timeline", "What ran where", timeline(evidence)),
        ("worst", "Worst clips", worst(evidence, leaders, data)),
        ("rejected", "Rejected clips", _rejected(evidence)),
        ("facts", "Study, versions and host", _facts(evidence)),
    )
    notes = [own_paths(evidence, note) for note in (choice.notes if choice is not None else evidence.notes)]
    return Document(
        title=f"qray report: {evidence.study.name}", about=_about(evidence), headline=headline(evidence, choice),
        notes=tuple(dict.fromkeys(notes)),
        sections=tuple(Section(anchor, title, tuple(blocks)) for anchor, title, blocks in parts if blocks),
    )  # fmt: skip


def _leaders(evidence: Evidence, choice: Choice | None) -> list[VariantEvidence]:
    """The variants worth a first look: FP32, the picked one, the runner-up; else the first ones compared."""
    by_name = {variant.name: variant for variant in evidence.variants}
    found = [evidence.reference]
    if choice is not None:
        found += [by_name[c.name] for c in (choice.picked, choice.runner_up) if c is not None]
    rest = [v for v in evidence.variants if v.clips is not None and v not in found]
    return (found + rest)[: max(len(found), 3)]


def _row_fact(evidence: Evidence, name: str) -> object:
    return next((getattr(v.row, name) for v in evidence.variants if getattr(v.row, name) is not None), None)


def _about(evidence: Evidence) -> str:
    """Data, machine and time in a line."""
    clips, made = _row_fact(evidence, "n_clips"), _row_fact(evidence, "created_at")
    host = hosts_of(evidence).get("host")
    timed = host and _row_fact(evidence, "latency_p50_ms") is not None
    parts = [
        f"{clips} {_row_fact(evidence, 'split')} clips" if clips is not None else "",
        f"latency on {host}" if timed else "",
        f"table of {made:%Y-%m-%d %H:%M} UTC" if made is not None else "",
    ]
    return "; ".join(filter(None, parts)) or "No figures"


def _rejected(evidence: Evidence) -> list[Block]:
    rows = tuple(
        (Cell(str(row["row"]), order=float(row["row"])), Cell(str(row["clip"])), Cell(str(row["reason"])))
        for row in evidence.rejected.to_dict("records")
    )
    if not rows:
        return [Paragraph("No clip was left out.")]
    grid = Grid(("line", "clip", "reason"), rows, "Rejected clips", frozenset({0}))
    words = f"{counted(len(rows), 'row')} of the file list could not be used, each for its own reason."
    return [Paragraph(words), grid if len(rows) <= 20 else Fold(f"All {len(rows)}", (grid,))]


def _facts(evidence: Evidence) -> list[Block]:
    hosts = hosts_of(evidence)
    titles = {"host": "host", "device": "device", "cpu_flags": "CPU flags",
              "load_average": "load average before measuring"}  # fmt: skip
    facts = {title: hosts.get(name) or _row_fact(evidence, name) for name, title in titles.items()}
    rows = [(Cell(title), Cell(number(value) if isinstance(value, float) else str(value)))
            for title, value in facts.items() if value not in (None, "")]  # fmt: skip
    rows += [(Cell(name), Cell(version)) for name, version in sorted(versions_of(evidence).items())]
    study = Fold("The study, as resolved (YAML)", (Code(dump_study(evidence.study), "yaml"),))
    return [*([Grid(("what", "value"), tuple(rows), "Host and versions")] if rows else []), study]
