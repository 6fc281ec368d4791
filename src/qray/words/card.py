"""A model card per artifact, so that a model file that travels alone still says what it is, and what it is not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qray.answers.card import DataFacts, artifact_facts, data_facts, front_matter
from qray.atomic import write_text
from qray.engines.catalog import ENGINES
from qray.errors import QrayError, UsageError
from qray.escape import command, markdown
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.row import Row
from qray.study import Imported, Model
from qray.words.card_words import agreement_words, method_words, speed_words, verdict_words
from qray.words.document import Block, Bullets, Cell, Code, Grid, Paragraph
from qray.words.figures import NOT_MEASURED, capital, number
from qray.words.markdown import block
from qray.words.phrases import NO_REASON, not_to_ship, settings_words, state_words

#: Where cards are, in OUT. An artifact's folder is measured and named by what is in it, so nothing is added there.
FOLDER = "cards"
NOT_KNOWN = "not recorded"


def write_cards(evidence: Evidence, names: Sequence[str] = ()) -> list[Path]:
    """Write OUT/cards/VARIANT.md for the named variants, or for every one that has an artifact.

    Raises:
        UsageError: a name is no variant of the run.
        QrayError: a named variant, or the whole run, has no artifact.
    """
    chosen = [_named(evidence, name) for name in names] or [v for v in evidence.variants if v.row.artifact]
    if not chosen:
        raise QrayError(f"{evidence.out}: no variant has an artifact, so there is nothing to write a card of")
    for variant in chosen:
        if not variant.row.artifact:
            why = f"{variant.status}, {variant.row.reason or NO_REASON}"
            raise QrayError(f"{variant.name} has no artifact to write a card of: {why}")
    paths = []
    for variant in chosen:
        path = evidence.out / FOLDER / f"{variant.name}.md"
        write_text(path, model_card(evidence, variant))
        paths.append(path)
    return paths


def _named(evidence: Evidence, name: str) -> VariantEvidence:
    found = next((v for v in evidence.variants if v.name == name), None)
    if found is None:
        known = ", ".join(v.name for v in evidence.variants) or "none"
        raise UsageError(f"{name!r} is no variant of {evidence.out}; its variants are {known}")
    return found


def model_card(evidence: Evidence, variant: VariantEvidence) -> str:
    """The card as Markdown, a pure function of OUT.

    Its sections are those of Mitchell et al., Model Cards for Model Reporting, FAT* 2019; its front matter is read by
    Hugging Face.
    """
    data, artifact = data_facts(evidence), artifact_facts(evidence.out, variant.row)
    sections: dict[str, Sequence[Block]] = {
        "Model details": _list(_details(evidence, variant, artifact)),
        "Intended use": _list(_use(evidence, data)),
        "Factors": _list(_factors(variant, artifact)),
        "Metrics": _list(_metrics(evidence)),
        "Evaluation data": _list(_data(evidence, data, ("TEST",))),
        "Training data": _list(_data(evidence, data, ("TRAIN", "VAL"))),
        "Quantitative analyses": _analyses(evidence, variant),
        "Ethical considerations": [Paragraph(_ethics(data))],
        "Caveats and recommendations": _list(_caveats(evidence, variant, artifact)),
        "How to load it": _loading(evidence, variant, artifact),
        "Versions": [Paragraph(_versions(artifact, variant.row))],
    }
    what = f"A video-regression model that predicts {_unit(evidence)} from a clip, made by qray in study "
    summary = f"{what}`{evidence.study.name}`. {verdict_words(evidence, variant)}"
    parts = [f"# {markdown(variant.name)}", markdown(summary)]
    for title, blocks in sections.items():
        parts += [f"## {title}", *map(block, blocks)]
    return front_matter(evidence, variant) + "\n" + "\n\n".join(parts) + "\n"


def _list(items: Iterable[str | None]) -> list[Block]:
    return [Bullets(tuple(item for item in items if item))]


def _unit(evidence: Evidence) -> str:
    return evidence.study.data.target_column


def network_words(model: Model | Imported) -> str:
    """What is trained, and from what weights on."""
    if isinstance(model, Imported):
        seen = model.input
        return (
            f"{model.source}, imported (weights {model.weights_sha256[:12]}): takes {seen.layout}, {seen.range}, less "
            f"{', '.join(f'{v:.4g}' for v in seen.mean)}, over {', '.join(f'{v:.4g}' for v in seen.std)}"
        )
    width = f" of width {model.width}" if model.width is not None else ""
    sees = f"each frame, {model.pooling} pooling over time" if model.pooling else "whole clips"
    first = {"imagenet": "ImageNet", "kinetics": "Kinetics"}.get(model.weights, "random")
    return f"{model.backbone}{width} on {sees}, linear head; {first} weights before training"


def _details(evidence: Evidence, variant: VariantEvidence, artifact: Mapping[str, Any]) -> list[str | None]:
    row, study = variant.row, evidence.study
    model, fit, built = study.model, study.training, artifact.get("built")
    macs = built.get("macs_per_clip") if isinstance(built, dict) else None
    return [
        f"Form: {method_words(evidence, variant)}",
        f"Network: {network_words(model)}",
        "Training: none here; the weights are as they were imported"
        if fit is None
        else f"Training: {fit.epochs} epochs, batch {fit.batch_size}, {fit.optimizer}, learning rate {fit.lr:g} "
        f"({fit.schedule}), {fit.loss} loss, seed {study.seed}",
        f"Artifact: `{row.artifact}` (relative to the run's folder), key `{row.key}`",
        f"Date of the table: {row.created_at:%Y-%m-%d}" if row.created_at is not None else None,
        f"Developed by: {NOT_KNOWN}; fill this in before you publish the model",
        "Licence of the weights: unknown. qray's own licence (Apache-2.0) is not that of a model that it trained, and "
        "the terms of the data set may bind what is trained on it",
        f"Settings chosen by the sweep on VAL: {settings_words(row) or NOT_KNOWN}" if row.settings else None,
        f"Multiply-accumulates per clip: {macs:,}" if macs else None,
    ]


def _use(evidence: Evidence, data: DataFacts) -> list[str | None]:
    return [
        f"For: research and engineering with this model: estimating {_unit(evidence)} on clips like those it was "
        "trained on, and comparing quantized forms of it.",
        "Not for: diagnosis, treatment or any decision about a person. It is not a medical device, and nobody has "
        "cleared or validated it as one.",
        "It was trained on synthetic clips: what it says of real ones means nothing." if data.synthetic else None,
        "Out of scope: clips from other devices, views, populations or preparations than the data set holds; qray has "
        "not tested any.",
    ]


def _factors(variant: VariantEvidence, artifact: Mapping[str, Any]) -> list[str]:
    built, isa = artifact.get("built"), artifact.get("isa")
    needs = built.get("needs") if isinstance(built, dict) else None
    build_flags = (artifact.get("versions") or {}).get("cpu_flags")
    if needs and isa:
        hardware = f"built for {isa}: on a CPU without {', '.join(map(str, needs))} it refuses to load"
    elif build_flags:
        hardware = f"not compiled for one CPU; built on one with {', '.join(str(build_flags).split())}"
    else:
        hardware = f"the CPU it was built for is {NOT_KNOWN}"
    row = variant.row
    latency = f"measured on {row.host}" if row.latency_p50_ms is not None else "not measured"
    return [
        f"Hardware: {hardware}.",
        f"Latency: {latency}. On another CPU it differs, and so may the order of the variants.",
        "Groups of subjects, devices or sites: qray knows only clips and targets, so accuracy was not broken down by "
        "them.",
    ]


def _metrics(evidence: Evidence) -> list[str | None]:
    rule = evidence.study.verdict
    turns = ", ".join(f"{threshold:g}" for threshold in rule.thresholds)
    return [
        f"MAE and RMSE in units of {_unit(evidence)}, and R2, on TEST; intervals are 95 % bootstrap over clips.",
        "The difference of MAE to FP32 is paired: both predict the same clips.",
        f"Verdict by a margin of {rule.margin:g}, declared in the study before the run: non-inferior if the upper "
        "bound of the difference is under it, inferior if the lower bound is over it, else inconclusive.",
        "Guardrails beside the mean, declared in the study too: the worst class, its shift, moves that sit in one "
        "place, the share of clips that move, the tail of the moves, and an output that saturates. A model that "
        "breaks one is not to be shipped, whatever its verdict.",
        f"Decisions that turn at {turns} are counted against FP32's." if turns else None,
    ]


def _data(evidence: Evidence, data: DataFacts, splits: Sequence[str]) -> list[str]:
    items = [f"Data set: {data.name}; digest `{data.digest}`" if data.digest else
             f"Data set: {data.name}; its digest is {NOT_KNOWN} (made by an earlier qray)"]  # fmt: skip
    for split in splits:
        facts = data.splits.get(split)
        if facts is None:
            items.append(f"{split}: number of clips {NOT_KNOWN}")
            continue
        words = f"{split}: {facts['clips']:.0f} clips"
        if "mean" in facts:
            words += f", {_unit(evidence)} {facts['mean']:.1f} on average ({facts['min']:.1f} to {facts['max']:.1f})"
        items.append(words)
    if "TEST" in splits:
        return [*items, "TEST was used once, by the evaluation of the finished artifact; tuning saw VAL only."]
    return [*items, f"{data.rejected} rows of the file list were left out; `rejected.parquet` names them and why."]


def _analyses(evidence: Evidence, variant: VariantEvidence) -> list[Block]:
    found: list[tuple[str, float | None, float | None, float | None, int]] = []
    if (a := variant.accuracy) is not None:
        row = variant.row
        found += [
            (f"MAE ({a.n_clips} clips)", a.mae, a.mae_low, a.mae_high, 2),
            ("RMSE", a.rmse, a.rmse_low, a.rmse_high, 2), ("R2", a.r2, a.r2_low, a.r2_high, 3),
            ("MAE of the mean predictor", row.baseline_mae, None, None, 2),
            ("MAE over that of the mean predictor", row.ratio_to_baseline, row.ratio_low, row.ratio_high, 3),
        ]  # fmt: skip
    if (c := variant.comparison) is not None:
        found.append(("MAE minus that of FP32", *c.difference.parts, 3))
        found.append((f"share of clips that move more than {c.moved:g}", c.moved_share, c.moved_low, c.moved_high, 3))
    rows = []
    for name, value, low, high, digits in found:
        known = low is not None and high is not None
        bounds = f"{number(low, digits)} to {number(high, digits)}" if known else NOT_MEASURED
        if value is not None:
            rows.append((Cell(name), Cell(number(value, digits)), Cell(bounds)))
    words = (*agreement_words(variant), *speed_words(variant))
    blocks: list[Block] = [Paragraph(verdict_words(evidence, variant))]
    blocks += [Grid(("figure", "value", "95 % interval"), tuple(rows), "Figures")] if rows else []
    return [*blocks, Bullets(words)] if words else blocks


def _ethics(data: DataFacts) -> str:
    if data.synthetic:
        return "The clips are drawn by a program; no person's data is in the model."
    return (
        "qray does not know whose recordings the data set holds, under which consent, or whom it leaves out. Whoever "
        "publishes the model has to know; the terms of the data set apply."
    )


def _caveats(evidence: Evidence, variant: VariantEvidence, artifact: Mapping[str, Any]) -> list[str | None]:
    status, reason = variant.row.status, variant.row.reason
    # The table's reason may hold a note word for word.
    told = reason is None or any(note in reason for note in variant.notes)
    return [
        *(f"{capital(not_to_ship(one.words))}." for one in variant.broken),
        *variant.notes, *evidence.notes, None if told else state_words(status, reason),
        None if artifact else "artifact.json could not be read, so what it says of the build is missing here.",
        "One training, one seed: how much another seed would change is not in the intervals, which are over clips.",
        "Evaluate it on clips of your own before you rely on it.",
    ]  # fmt: skip


def _loading(evidence: Evidence, variant: VariantEvidence, artifact: Mapping[str, Any]) -> list[Block]:
    path = str(variant.row.artifact)
    clip = artifact.get("clip") or evidence.study.clip.model_dump()
    frames, size = clip.get("frames", "T"), clip.get("image_size", "H")
    native = ENGINES[variant.outcome.engine].native
    python = f"""from pathlib import Path
from qray.engines.registry import load_artifact
predictions = load_artifact(Path({json.dumps(path)}), threads=1{", allow_code=True" * native})(clips)"""
    return [
        Paragraph("From the run's folder, for video files (sampled as in the evaluation):"),
        Code(f"{command('qray', 'predict', *['--allow-code'] * native, Path(path))} VIDEO...", "bash"),
        Paragraph(f"For arrays: uint8 (B, {frames}, {size}, {size}, 3) RGB in, float32 (B,) out, in units of "
                  f"{_unit(evidence)}:"),
        Code(python, "python"),
    ]  # fmt: skip


def _versions(artifact: Mapping[str, Any], row: Row) -> str:
    found = artifact.get("versions")
    packages = found if isinstance(found, dict) else row.packages
    words = ", ".join(f"{name} {version}" for name, version in packages.items() if name != "cpu_flags")
    return f"Built with {words}." if words else f"The versions it was built with are {NOT_KNOWN}."
