"""A hand-made run with everything that a report can show, for its tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.evidence_runs import BEGAN, VARIANTS, make_run
from support.videos import numbered_frames, write_video

from qray.engines.parity import Outside, Simulated, parity_notes
from qray.judge.judge import read_evidence
from qray.report.sections import compose
from qray.words.document import Block, Document, Fold

COSTS = {
    "blocks_ms": {
        "decode": [[4.0, 4.2], [4.1, 4.0]], "preprocessing": [[0.5, 0.6], [0.5, 0.5]],
        "backbone": [[6.5, 6.6], [6.4, 6.5]], "head": [[0.1, 0.1], [0.1, 0.1]],
    },
    "frames": 16, "image_size": 64, "threads": 1, "label": "costs of a clip", "started": BEGAN + 281, "seconds": 4.0,
}  # fmt: skip
CLIPS = 200


def layer(name: str, sqnr_db: float, harm: float) -> dict[str, Any]:
    """One layer of a sensitivity record."""

    def state(delta: float, sqnr: float) -> dict[str, float]:
        return {"sqnr_db": sqnr, "delta_mae": delta, "delta_low": delta - 0.02, "delta_high": delta + 0.02}

    seen = {"observer_low": 0.0, "observer_high": 4.0, "seen_low": 0.0, "seen_high": 4.5, "clipped_share": 0.001}
    return {
        "layer": name,
        "macs": 1000,
        "alone": state(harm, sqnr_db),
        "all_but": state(0.1 - harm, 24.0),
        "range": seen,
    }


SENSITIVITY = {
    "weight_bits": 8, "n_clips": 64, "split": "VAL", "fp32_mae": 5.0, "all_sqnr_db": 25.0, "started": BEGAN + 290,
    "seconds": 9.0, "label": "sensitivity of 20 layers",
    "layers": [layer(f"layer{1 + n // 4}.{n % 4 // 2}.conv{1 + n % 2}", 30.0 + n, 0.05 / (1 + n)) for n in range(20)],
}  # fmt: skip


def full_run(folder: Path, **changes: Any) -> Path:
    """OUT with costs, sensitivity, parity, and videos of all its clips in OUT/../set."""
    data = folder.parent / "set"
    names = [f"clip-{number:03d}" for number in range(CLIPS)]
    if not data.is_dir():
        first = write_video(data / "Videos" / f"{names[0]}.avi", numbered_frames(12))
        for name in names[1:]:
            (data / "Videos" / f"{name}.avi").hardlink_to(first)
    units = {"costs-abc": COSTS, "sensitivity-abc": SENSITIVITY}
    int8 = {name: replace(made, notes=parity()) if made.method in ("ptq", "qat") else made
            for name, made in VARIANTS.items()}  # fmt: skip
    given = {"clips": CLIPS, "clip_names": names, "data_dir": data, "units": units, "variants": int8}
    out = make_run(folder, **(given | changes))
    return out


def parity() -> dict[str, Any]:
    """Notes of the build of an INT8 artifact."""
    simulated = np.linspace(30, 70, 16)
    deployed = simulated + 0.02 * np.sin(simulated)
    fp32 = simulated - 0.2 * np.cos(simulated)
    outside = Outside()
    outside.see("conv1", np.linspace(-1, 300, 5000), 0, 255, 1)
    validation = [torch.arange(16, dtype=torch.uint8)]
    return parity_notes(
        lambda clips: fp32[clips], Simulated(lambda clips: simulated[clips], outside), lambda clips: deployed[clips],
        validation,
    )  # fmt: skip


def small_run(folder: Path, **changes: Any) -> Path:
    """OUT with FP32 on two engines and one INT8 variant, the one to ship: few plots, drawn in a second."""
    few = {name: VARIANTS[name] for name in ("fp32", "fp32-openvino", "ptq-openvino")}
    return make_run(folder, variants=few, **changes)


def report_of(out: Path, data: Path | None = None) -> Document:
    """The report of a run, not written."""
    return compose(read_evidence(out), data)


def texts(blocks: tuple[Block, ...]) -> str:
    """All that the blocks of a section say, as one text."""
    said: list[str] = []
    for block in blocks:
        match block:
            case Fold():
                said += [block.summary, texts(block.blocks)]
            case _:
                said.append(str(_public(block)))
    return "\n".join(said)


def _public(block: Any) -> Mapping[str, Any]:
    return {name: value for name, value in vars(block).items() if name not in ("svg", "png")}


def section(document: Document, anchor: str) -> str:
    """What one section says."""
    return next(texts(found.blocks) for found in document.sections if found.anchor == anchor)
