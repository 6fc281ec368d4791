"""A model card per artifact, so that a model file that travels alone still says what it is, and what it is not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qray.answers.card import DataFacts, artifact_facts, data_facts, front_matter
from qray.atomic import write_text
from qray.errors import QrayError, UsageError
from qray.escape import command, markdown
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.row import Row
from qray.words.card_words import agreement_words, method_words, speed_words, verdict_words

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
            reason = variant.row.reason or "no reason recorded"
            raise QrayError(f"{variant.name} has no artifact to write a card of: {variant.status}, {reason}")
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
    parts = [
        f"# {markdown(variant.name)}",
        markdown(_summary(evidence, variant)),
        _section("Model details", _details(evidence, variant, artifact)),
        _section("Intended use", _use(evidence, data)),
        _section("Factors", _factors(variant, artifact)),
        _section("Metrics", _metrics(evidence)),
        _section("Evaluation data", _data(evidence, data, ("TEST",))),
        _section("Training data", _data(evidence, data, ("TRAIN", "VAL"))),
        _section("Quantitative analyses", _analyses(evidence, variant)),
        _section("Ethical considerations", markdown(_ethics(data))),
        _section("Caveats and recommendations", _caveats(evidence, variant, artifact)),
        _section("How to load it", _loading(evidence, variant, artifact)),
        _section("Versions", markdown(_versions(artifact, variant.row))),
    ]
    return front_matter(evidence, variant) + "\n" + "\n\n".join(parts) + "\n"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _list(items: Iterable[str | None]) -> str:
    return "\n".join(f"- {markdown(item)}" for item in items if item)


def _unit(evidence: Evidence) -> str:
    return evidence.study.data.target_column


def _summary(evidence: Evidence, variant: VariantEvidence) -> str:
    study = evidence.study.name
    what = f"A video-regression model that predicts {_unit(evidence)} from a clip, made by qray in study `{study}`."
    return f"{what} {verdict_words(evidence, variant)}"


def _details(evidence: Evidence, variant: VariantEvidence, artifact: Mapping[str, Any]) -> str:
    row, study = variant.row, evidence.study
    made = variant.row.created_at
    model, fit = study.model, study.training
    first = "ImageNet weights" if model.weights == "imagenet" else "random weights"
    items = [
        f"Form: {method_words(evidence, variant)}",
        f"Network: {model.backbone} of width {model.width} on each frame, {model.pooling} pooling over time, "
        f"linear head; {first} before training",
        f"Training: {fit.epochs} epochs, batch {fit.batch_size}, {fit.optimizer}, learning rate {fit.lr:g} "
        f"({fit.schedule}), {fit.loss} loss, seed {study.seed}",
        f"Artifact: `{row.artifact}` (relative to the run's folder), key `{row.key}`",
        f"Date of the table: {made:%Y-%m-%d}" if made is not None else None,
        f"Developed by: {NOT_KNOWN}; fill this in before you publish the model",
        "Licence of the weights: unknown. qray's own licence (Apache-2.0) is not that of a model that it trained, and "
        "the terms of the data set may bind what is trained on it",
    ]
    if row.settings:
        items.append(f"Settings chosen by the sweep on VAL: {_settings(row.settings)}")
    built = artifact.get("built")
    if isinstance(built, dict) and built.get("macs_per_clip"):
        items.append(f"Multiply-accumulates per clip: {built['macs_per_clip']:,}")
    return _list(items)


def _settings(text: str) -> str:
    try:
        return ", ".join(f"{name} {value}" for name, value in json.loads(text).items() if value not in ([], None))
    except (ValueError, AttributeError):
        return NOT_KNOWN


def _use(evidence: Evidence, data: DataFacts) -> str:
    return _list([
        f"For: research and engineering with this model: estimating {_unit(evidence)} on clips like those it was "
        "trained on, and comparing quantized forms of it.",
        "Not for: diagnosis, treatment or any decision about a person. It is not a medical device, and nobody has "
        "cleared or validated it as one.",
        "It was trained on synthetic clips: what it says of real ones means nothing." if data.synthetic else None,
        "Out of scope: clips from other devices, views, populations or preparations than the data set holds; qray has "
        "not tested any.",
    ])  # fmt: skip


def _factors(variant: VariantEvidence, artifact: Mapping[str, Any]) -> str:
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
    return _list([
        f"Hardware: {hardware}.",
        f"Latency: {latency}. On another CPU it differs, and so may the order of the variants.",
        "Groups of subjects, devices or sites: qray knows only clips and targets, so accuracy was not broken down by "
        "them.",
    ])  # fmt: skip


def _metrics(evidence: Evidence) -> str:
    items = [
        f"MAE and RMSE in units of {_unit(evidence)}, and R2, on TEST; intervals are 95 % bootstrap over clips.",
        "The difference of MAE to FP32 is paired: both predict the same clips.",
    ]
    rule = evidence.study.verdict
    items.append(
        f"Verdict by a margin of {rule.margin:g}, declared in the study before the run: non-inferior if the upper "
        "bound of the difference is under it, inferior if the lower bound is over it, else inconclusive."
    )
    items.append(
        "Guardrails beside the mean, declared in the study too: the worst class, its shift, moves that sit in one "
        "place, the share of clips that move, the tail of the moves, and an output that saturates. A model that "
        "breaks one is not to be shipped, whatever its verdict."
    )
    if rule.thresholds:
        turns = ", ".join(f"{threshold:g}" for threshold in rule.thresholds)
        items.append(f"Decisions that turn at {turns} are counted against FP32's.")
    return _list(items)


def _data(evidence: Evidence, data: DataFacts, splits: Sequence[str]) -> str:
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
        items.append("TEST was used once, by the evaluation of the finished artifact; tuning saw VAL only.")
    else:
        items.append(f"{data.rejected} rows of the file list were left out; `rejected.parquet` names them and why.")
    return _list(items)


def _analyses(evidence: Evidence, variant: VariantEvidence) -> str:
    lines = [markdown(verdict_words(evidence, variant)), "", "| figure | value | 95 % interval |", "|---|---|---|"]
    for name, value, low, high, digits in _figures(variant):
        known = low is not None and high is not None
        bounds = f"{low:.{digits}f} to {high:.{digits}f}" if known else "–"
        lines.append(f"| {markdown(name)} | {value:.{digits}f} | {bounds} |")
    if len(lines) == 4:
        lines = lines[:2]
    words = _list([*agreement_words(variant), *speed_words(variant)])
    return "\n".join(lines).strip() + (f"\n\n{words}" if words else "")


def _figures(variant: VariantEvidence) -> list[tuple[str, float, float | None, float | None, int]]:
    found: list[tuple[str, float | None, float | None, float | None, int]] = []
    if (a := variant.accuracy) is not None:
        found += [(f"MAE ({a.n_clips} clips)", a.mae, a.mae_low, a.mae_high, 2),
                  ("RMSE", a.rmse, a.rmse_low, a.rmse_high, 2), ("R2", a.r2, a.r2_low, a.r2_high, 3)]  # fmt: skip
        row = variant.row
        found.append(("MAE of the mean predictor", row.baseline_mae, None, None, 2))
        found.append(("MAE over that of the mean predictor", row.ratio_to_baseline, row.ratio_low,
                      row.ratio_high, 3))  # fmt: skip
    if (c := variant.comparison) is not None:
        found.append(("MAE minus that of FP32", c.delta, c.delta_low, c.delta_high, 3))
        found.append((f"share of clips that move more than {c.moved:g}", c.moved_share, c.moved_low, c.moved_high, 3))
    return [(name, value, low, high, digits) for name, value, low, high, digits in found if value is not None]


def _ethics(data: DataFacts) -> str:
    if data.synthetic:
        return "The clips are drawn by a program; no person's data is in the model."
    return (
        "qray does not know whose recordings the data set holds, under which consent, or whom it leaves out. Whoever "
        "publishes the model has to know; the terms of the data set apply."
    )


def _caveats(evidence: Evidence, variant: VariantEvidence, artifact: Mapping[str, Any]) -> str:
    status, reason = variant.row.status, variant.row.reason
    # The table's reason may hold a note word for word.
    told = reason is None or any(note in reason for note in variant.notes)
    said = None if told else str(reason) if status == "ok" else f"{status}: {reason}"
    missing = None if artifact else "artifact.json could not be read, so what it says of the build is missing here."
    compared = variant.comparison
    broken = [f"Not to be shipped: {one.words}." for one in (compared.broken if compared is not None else ())]
    return _list([
        *broken, *variant.notes, *evidence.notes, said, missing,
        "One training, one seed: how much another seed would change is not in the intervals, which are over clips.",
        "Evaluate it on clips of your own before you rely on it.",
    ])  # fmt: skip


def _loading(evidence: Evidence, variant: VariantEvidence, artifact: Mapping[str, Any]) -> str:
    path, clip = str(variant.row.artifact), artifact.get("clip") or {}
    if not clip:
        clip = evidence.study.clip.model_dump()
    frames, size = clip.get("frames", "T"), clip.get("image_size", "H")
    return f"""From the run's folder, for video files (sampled as in the evaluation):

```bash
{command("qray", "predict", Path(path))} VIDEO...
```

For arrays: uint8 (B, {frames}, {size}, {size}, 3) RGB in, float32 (B,) out, in units of {markdown(_unit(evidence))}:

```python
from pathlib import Path
from qray.variants.registry import load_artifact
predictions = load_artifact(Path({json.dumps(path)}), threads=1)(clips)
```"""


def _versions(artifact: Mapping[str, Any], row: Row) -> str:
    found = artifact.get("versions")
    if not isinstance(found, dict):
        try:
            found = json.loads(row.versions or "{}")
        except ValueError:
            found = {}
    words = ", ".join(f"{name} {value}" for name, value in found.items() if name != "cpu_flags")
    return f"Built with {words}." if words else f"The versions it was built with are {NOT_KNOWN}."
