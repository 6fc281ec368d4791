"""The sensitivity analysis: layers are measured by tasks side by side, then put together into one record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qray.data.manifest import Manifest
from qray.graph.unit import Resources, Task, Unit
from qray.judge.sensitivity import summarize
from qray.measure.isa import range_is_reduced
from qray.model.epoch import Checkpoint
from qray.study import Sensitivity, Study, Variant
from qray.units.clips import Job, SplitClips, calibration_clips, named_failures
from qray.units.context import RunContext

if TYPE_CHECKING:
    import torch


def sensitivity_units(
    study: Study, settings: Sensitivity, isa: str, train: Unit, digests: Mapping[str, str]
) -> list[Unit]:
    """A unit for each share of the layers, and last the one that puts them together."""
    depends = {
        "train": train, "calibration": study.calibration, "clips": digests["TRAIN"], "val": digests["VAL"],
        "seed": study.seed, "clip": study.clip.frames_read(),
        "reduce_range": range_is_reduced(isa, settings.weight_bits),
        # How many tasks share the work has no part in what comes out.
        "settings": settings.model_dump(mode="json", exclude={"tasks"}),
    }  # fmt: skip
    shares = [(part, settings.tasks) for part in range(settings.tasks)]
    own = "" if settings == study.sensitivity else f", w{settings.weight_bits} {settings.observer}"
    parts = [
        Unit("layers", f"part {part + 1} of {of}{own}", Layers((part, of), settings, isa, train),
             depends | {"part": part, "of": of}, title=f"sensitivity, part {part + 1} of {of}{own}")
        for part, of in shares
    ]  # fmt: skip
    bootstrap = {"bootstrap": study.verdict.bootstrap, "seed": study.verdict.seed}
    whole = Unit("sensitivity", f"layers{own}", Together(settings, tuple(parts)), depends | {"verdict": bootstrap},
                 after=tuple(parts), title=f"sensitivity{own}")  # fmt: skip
    return [*parts, whole]


def validation_clips(study: Study, manifest: Manifest, count: int) -> pd.DataFrame:
    """VAL clips that the layers are measured on, drawn by the study's seed."""
    clips = manifest.split("VAL")
    chosen = np.random.default_rng((study.seed, 2)).choice(len(clips), min(count, len(clips)), replace=False)
    return clips.iloc[np.sort(chosen)].reset_index(drop=True)


def share_of(layers: Sequence[str], part: int, of: int) -> tuple[str, ...]:
    """Neighbouring layers to each of so many parts, as evenly as they go."""
    return tuple(np.array_split(np.array(layers, dtype=object), of)[part])


@dataclass
class Layers(Task):
    """What quantizing each layer of a share does to predictions."""

    share: tuple[int, int]
    settings: Sensitivity
    isa: str
    train: Unit

    def start(self, unit: Unit, run: RunContext) -> Any:
        study = run.study
        calibration = run.clips(calibration_clips(study, run.manifest))
        clips = run.clips(validation_clips(study, run.manifest, self.settings.clips))
        weights = run.checkpoint(self.train.key)
        return run.backend.submit(
            unit, measure_layers, run.job, self.settings, self.share, self.isa, weights, calibration, clips
        )

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any]:
        return value | run.name_failed("sensitivity", value.pop("failed"))


@dataclass
class Together(Task):
    """The driver's own work."""

    settings: Sensitivity
    parts: tuple[Unit, ...]
    resources = Resources(slots=0)

    def start(self, unit: Unit, run: RunContext) -> Any:
        return run.backend.done()

    def finish(self, unit: Unit, run: RunContext, value: None) -> dict[str, Any]:
        records = [record for part in self.parts if (record := run.store.record(part)) is not None]
        target = validation_clips(run.study, run.manifest, self.settings.clips)["target"].to_numpy(np.float64)
        verdict = run.study.verdict
        facts = {"weight_bits": self.settings.weight_bits, "observer": self.settings.observer, "split": "VAL"}
        return facts | summarize(records, target, verdict.bootstrap, verdict.seed)


def measure_layers(
    job: Job, settings: Sensitivity, share: tuple[int, int], isa: str, weights: Checkpoint, calibration: SplitClips,
    val: SplitClips,
) -> dict[str, Any]:  # fmt: skip
    """What `engines.sensitivity.measure_layers` gives of a share of the layers, (part, of how many), on the network
    that PTQ with these settings would ship; with the reasons of clips that failed."""
    import torch

    from qray.data.stream import stream_batches
    from qray.engines.artifact import BuildRequest
    from qray.engines.layers import layer_names
    from qray.engines.sensitivity import layered
    from qray.engines.sensitivity import measure_layers as measure
    from qray.units.work import fixed_batches, model_from_state

    torch.set_num_threads(1)
    variant = Variant(
        name="sensitivity", method="ptq", engine="inductor", weight_bits=settings.weight_bits,
        observer=settings.observer,
    )  # fmt: skip
    clip, title = job.study.clip, f"sensitivity part {share[0] + 1} of {share[1]}"
    plan = job.eval_plan(clip.single_window())
    observed, missed = fixed_batches(calibration, job, f"{title} calibration")
    model = model_from_state(job.study.model, weights)
    network = layered(BuildRequest(variant, model, clip, observed, isa=isa))
    failed: dict[int, str] = {}

    def batches() -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for batch in stream_batches(val.datasets(plan, title), plan, title):
            failed.update(batch.failed)
            yield batch.index[batch.ok], torch.from_numpy(batch.frames[batch.ok]).squeeze(1)

    layers = [name for name in share_of(layer_names(model), *share) if name in network.switches]
    measured = measure(network, batches(), layers, len(val.clips))
    val.check("sensitivity", failed)
    named = named_failures(calibration.clips, missed) | named_failures(val.clips, failed)
    return measured | {"failed": named}
