"""The part of a model card that machines read: YAML front matter, and what it says of data set and artifact."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qray.escape import visible
from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.index import read_record
from qray.judge.row import Row

#: Hugging Face's word for a licence that nobody has named.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class DataFacts:
    """The data set of a run. digest is None, and splits (name -> clips, mean, min and max of the target) lack what was
    not recorded, where an earlier version made the run."""

    name: str
    synthetic: bool
    digest: str | None
    splits: Mapping[str, Mapping[str, float]]
    rejected: int


def data_facts(evidence: Evidence) -> DataFacts:
    """What OUT knows of the data set; never its path, which is of one machine only."""
    record = next((unit for unit in evidence.units if unit.get("kind") == "data"), {})
    data = evidence.study.data
    s, synthetic = data.synthetic, data.dir is None
    name = f"qray synthetic apical four-chamber clips (seed {s.seed})" if synthetic else Path(str(data.dir)).name
    name = " ".join(visible(name).split())
    splits = record.get("splits")
    if not isinstance(splits, dict):
        # The synthetic set is as the study says; of any other only its record tells.
        splits = {"TRAIN": {"clips": s.train}, "VAL": {"clips": s.val}, "TEST": {"clips": s.test}} if synthetic else {}
    return DataFacts(name, synthetic, record.get("digest"), splits, len(evidence.left_out))


def artifact_facts(out: Path, row: Row) -> dict[str, Any]:
    """The artifact's own artifact.json; empty where it cannot be read (the artifact may have been moved away)."""
    return read_record(out / str(row.artifact) / "artifact.json", "artifact") or {}


def front_matter(evidence: Evidence, variant: VariantEvidence) -> str:
    """YAML metadata as Hugging Face reads it: library, tags, licence, and the evaluation as a `model-index`.

    There is no `pipeline_tag`: theirs has no video regression, and the nearest one (video-classification) would say
    something that the model does not do.
    """
    import yaml

    row, facts = variant.row, data_facts(evidence)
    tags = ["video-regression", "quantization", *filter(None, (row.method, row.engine, row.backbone))]
    card: dict[str, Any] = {"library_name": "qray", "license": UNKNOWN, "tags": tags}
    metrics = _metrics(variant)
    if metrics:
        name = evidence.study.name
        kind = re.sub(r"[^a-z0-9]+", "-", facts.name.lower()).strip("-")
        dataset = {"type": kind or UNKNOWN, "name": facts.name,
                   "split": str(row.split or "TEST").lower()}  # fmt: skip
        if facts.digest:
            # Ours is a digest of clips and targets; theirs is a commit, and both say which data it was.
            dataset["revision"] = facts.digest
        task = {"type": "video-regression", "name": "Video regression"}
        result = {"task": task, "dataset": dataset, "metrics": metrics}
        card |= {"metrics": [m["type"] for m in metrics]}
        card["model-index"] = [{"name": f"{name}-{variant.name}", "results": [result]}]
    return f"---\n{yaml.safe_dump(card, sort_keys=False, allow_unicode=True)}---\n"


def _metrics(variant: VariantEvidence) -> list[dict[str, Any]]:
    accuracy = variant.accuracy
    if accuracy is None:
        return []
    figures = [
        ("mae", "MAE", accuracy.mae, accuracy.mae_low, accuracy.mae_high),
        ("rmse", "RMSE", accuracy.rmse, accuracy.rmse_low, accuracy.rmse_high),
        ("r_squared", "R²", accuracy.r2, accuracy.r2_low, accuracy.r2_high),
    ]
    found = []
    for kind, name, value, low, high in figures:
        if value is None:
            continue
        if low is not None and high is not None:
            # Their schema has no field for an interval; the name is what is shown beside the value.
            name += f" (95 % {low:.3f} to {high:.3f})"
        found.append({"type": kind, "name": name, "value": round(value, 4)})
    return found
