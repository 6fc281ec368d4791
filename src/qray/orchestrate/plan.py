"""What a study comes to: the units of work and the keys that name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from qray.data.manifest import Manifest, digest_of
from qray.orchestrate.store import unit_key
from qray.orchestrate.sweep import trial_settings
from qray.study import INT8_METHODS, Study, Variant
from qray.variants.parity import PARITY_CLIPS


@dataclass(frozen=True)
class Plan:
    """Keys of every unit of a study on a data set.

    trials: {"key", "settings"} of each QAT trial; finetune: key of the FP32 control, by the weight width it is the
    control of; build and evaluate: keys by variant name.
    """

    study: Study
    manifest: Manifest
    train: str
    trials: tuple[dict[str, Any], ...]
    sweep: str
    finetune: dict[int, str]
    build: dict[str, str]
    evaluate: dict[str, str]

    def baseline_key(self) -> str:
        """Key of the mean predictor's predictions."""
        return unit_key("evaluate", baseline=digest_of(self.manifest.split("TRAIN")), test=self.test_digest())

    def test_digest(self) -> str:
        """Digest of the TEST clips."""
        return digest_of(self.manifest.split("TEST"))

    def calibration_clips(self) -> pd.DataFrame:
        """TRAIN clips that static quantization observes, drawn by the study's seed."""
        train = self.manifest.split("TRAIN")
        count = min(self.study.calibration.clips, len(train))
        chosen = np.random.default_rng((self.study.seed, 1)).choice(len(train), count, replace=False)
        return train.iloc[np.sort(chosen)].reset_index(drop=True)


def _without_name(variant: Variant) -> dict[str, Any]:
    return variant.model_dump(mode="json", exclude={"name"})


def make_plan(study: Study, manifest: Manifest) -> Plan:
    """Name every unit of work by a hash of what it depends on."""
    train_digest, val_digest = digest_of(manifest.split("TRAIN")), digest_of(manifest.split("VAL"))
    # How many windows an evaluation averages has no part in training or building.
    frames = study.clip.model_dump(mode="json", exclude={"eval_windows"})
    train = unit_key(
        "train", clips=train_digest, clip=frames, model=study.model, training=study.training, seed=study.seed
    )
    settings = trial_settings(study.sweep, study.seed) if study.sweep else []
    trials = tuple(
        {"key": unit_key("trial", train=train, val=val_digest, settings=s, seed=study.seed), "settings": s}
        for s in settings
    )
    factor = study.sweep.reduction_factor if study.sweep else None
    sweep = unit_key("sweep", trials=[t["key"] for t in trials], reduction_factor=factor)
    widths: set[int] = {v.weight_bits for v in study.variants if v.method == "finetune"}
    finetune = {width: unit_key("finetune", train=train, sweep=sweep, weight_bits=width) for width in widths}
    build = {}
    for variant in study.variants:
        upstream: dict[str, Any] = {"train": train}
        if variant.method == "qat":
            upstream["sweep"] = sweep
        elif variant.method == "finetune":
            upstream = {"finetune": finetune[variant.weight_bits]}
        if variant.method in INT8_METHODS:
            # QAT observes none of these clips, but like PTQ it is compared on them with its simulated model.
            upstream |= {"calibration": study.calibration, "clips": train_digest, "seed": study.seed}
            upstream["parity_clips"] = PARITY_CLIPS
        build[variant.name] = unit_key("build", variant=_without_name(variant), clip=frames, **upstream)
    test = digest_of(manifest.split("TEST"))
    evaluate = {name: unit_key("evaluate", build=key, clip=study.clip, test=test) for name, key in build.items()}
    return Plan(study, manifest, train, trials, sweep, finetune, build, evaluate)
