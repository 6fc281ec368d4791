"""What a study comes to: the units of work and the keys that name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from qray.data.manifest import Manifest, digest_of
from qray.measure.isa import Machine, range_is_reduced, this_machine
from qray.orchestrate.store import unit_key
from qray.orchestrate.trials import trial_settings
from qray.study import INT8_METHODS, Study, Training, Variant
from qray.variants.registry import depends_on_isa


@dataclass(frozen=True)
class Plan:
    """Keys of every unit of a study on a data set.

    isa: the target's instruction set, resolved. training: its precision resolved too, where it is not a GPU's affair.
    trials: {"keys", "key", "settings"} of each QAT trial: the key of what it is after 1, 2, ... epochs, and the last of
    them; finetune: key of the FP32 control, by the weight width it is the
    control of; build and evaluate: keys by variant name.
    """

    study: Study
    manifest: Manifest
    isa: str
    training: Training
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
        return covering(self.manifest.split("TRAIN"), self.study.calibration.clips, (self.study.seed, 1))

    def parity_clips(self) -> pd.DataFrame:
        """VAL clips on which FP32, simulated and deployed predictions are compared, drawn by the study's seed."""
        return covering(self.manifest.split("VAL"), self.study.parity.clips, (self.study.seed, 3))


#: Parts of the target's range that clips are drawn from in turn.
TARGET_BINS = 16


def covering(clips: pd.DataFrame, count: int, seed: tuple[int, ...]) -> pd.DataFrame:
    """`count` clips over the whole range of the target, in the manifest's order: both extremes, and then one from each
    of `TARGET_BINS` bins of equal width in turn, so that rare targets are seen as long as there are any.

    Ranges from a uniform draw cut off what unusual clips do to a network.
    """
    if count >= len(clips):
        return clips.reset_index(drop=True)
    target = clips["target"].to_numpy(np.float64)
    order = np.random.default_rng(seed).permutation(len(clips))
    edges = np.linspace(target.min(), target.max(), TARGET_BINS + 1)[1:-1]
    bins = np.digitize(target[order], edges)
    # The rank of each clip within its bin: first all that come first there, then all that come second.
    turn = pd.Series(bins).groupby(bins).cumcount().to_numpy(copy=True)
    turn[np.isin(order, [target.argmin(), target.argmax()])] = -1
    chosen = order[np.argsort(turn, kind="stable")[:count]]
    return clips.iloc[np.sort(chosen)].reset_index(drop=True)


def _without_name(variant: Variant) -> dict[str, Any]:
    return variant.model_dump(mode="json", exclude={"name"})


def _trained_by(training: Training, machine: Machine) -> Training:
    """The fit settings with the precision that `auto` comes to; a GPU decides for itself."""
    if training.precision != "auto" or machine.gpu:
        return training
    return training.model_copy(update={"precision": "bf16" if machine.bf16 else "fp32"})


def _trial(settings: dict[str, Any], **upstream: Any) -> dict[str, Any]:
    keys = [unit_key("trial", settings=settings, epochs=e + 1, **upstream) for e in range(settings["epochs"])]
    return {"keys": keys, "key": keys[-1], "settings": settings}


def make_plan(study: Study, manifest: Manifest, machine: Machine | None = None) -> Plan:
    """Name every unit of work by a hash of what it depends on.

    machine: of the run, or the least of a cluster's; by default this one.
    """
    machine = machine or this_machine()
    isa = machine.isa if study.target.isa == "native" else study.target.isa
    training = _trained_by(study.training, machine)
    train_digest, val_digest = digest_of(manifest.split("TRAIN")), digest_of(manifest.split("VAL"))
    # How many windows an evaluation averages has no part in training or building.
    frames = study.clip.model_dump(mode="json", exclude={"eval_windows"})
    train = unit_key("train", clips=train_digest, clip=frames, model=study.model, training=training, seed=study.seed)
    settings = [
        s | {"reduce_range": range_is_reduced(isa, s["weight_bits"])}
        for s in (trial_settings(study.sweep, study.seed) if study.sweep else [])
    ]
    trials = tuple(_trial(s, train=train, val=val_digest, seed=study.seed) for s in settings)
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
            upstream |= {"parity_clips": study.parity.clips, "val": val_digest, "seed": study.seed}
        if variant.method == "ptq":
            upstream |= {"calibration": study.calibration, "clips": train_digest}
        if depends_on_isa(variant):
            upstream["isa"] = isa
        build[variant.name] = unit_key("build", variant=_without_name(variant), clip=frames, **upstream)
    test = digest_of(manifest.split("TEST"))
    evaluate = {name: unit_key("evaluate", build=key, clip=study.clip, test=test) for name, key in build.items()}
    return Plan(study, manifest, isa, training, train, trials, sweep, finetune, build, evaluate)
