"""Builds: an artifact from the weights that its method needs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qray.engines.artifact import read_artifact
from qray.engines.registry import build_needs, changes_process, depends_on_isa, missing_requirement
from qray.errors import Unavailable
from qray.graph.placement import whereabouts
from qray.graph.store import pack_folder
from qray.graph.unit import Resources, Skipped, Task, Unit
from qray.study import INT8_METHODS, ClipSpec, Model, Study, Variant
from qray.units.clips import SplitClips, calibration_clips, named_failures, parity_clips
from qray.units.context import RunContext


def build_unit(
    study: Study, variant: Variant, isa: str, train: Unit, sweep: Unit | None, finetune: Unit | None,
    digests: Mapping[str, str],
) -> Unit:  # fmt: skip
    """The artifact of a variant, for an instruction set. finetune: of its weight width, where its method is that."""
    depends: dict[str, Any] = {
        "variant": variant.model_dump(mode="json", exclude={"name"}), "clip": study.clip.frames_read()
    }  # fmt: skip
    depends |= {"finetune": finetune} if variant.method == "finetune" else {"train": train}
    if variant.method == "qat":
        depends["sweep"] = sweep
    if variant.method in INT8_METHODS:
        depends |= {"parity_clips": study.parity.clips, "val": digests["VAL"], "seed": study.seed}
    if variant.method == "ptq":
        depends |= {"calibration": study.calibration, "clips": digests["TRAIN"]}
    if depends_on_isa(variant):
        depends["isa"] = isa
    return Unit("build", variant.name, Build(variant, isa), depends)


@dataclass(frozen=True)
class BuildJob:
    """A variant to build, for an instruction set, and how its clips are read."""

    variant: Variant
    key: str
    isa: str
    model: Model
    clip: ClipSpec
    calibration_batch: int
    slot_cpus: float
    timeout_s: float
    qat_settings: dict[str, Any] | None = None


@dataclass
class Build(Task):
    """An artifact, built where it can be tried."""

    variant: Variant
    isa: str
    version = 4

    def __post_init__(self) -> None:
        self.resources = Resources(fresh_process=changes_process(self.variant))

    def impossible(self) -> str | None:
        return missing_requirement(self.variant, self.isa)

    def start(self, unit: Unit, run: RunContext) -> Any:
        study, variant = run.study, self.variant
        weights = run.checkpoint((unit.depends.get("finetune") or unit.depends["train"]).key)
        clips, qat_weights, qat_settings = {}, None, None
        if variant.method == "ptq":
            clips["calibration"] = run.clips(calibration_clips(study, run.manifest))
        if variant.method in INT8_METHODS:
            clips["validation"] = run.clips(parity_clips(study, run.manifest))
        if variant.method == "qat":
            best = run.best_trial(unit.depends["sweep"], variant.weight_bits)
            qat_weights, qat_settings = run.checkpoint(best["key"]), best["qat"]
        job = BuildJob(
            variant, unit.key, self.isa, study.model, study.clip, study.calibration.batch_size, run.slot_cpus,
            run.timeout_s, qat_settings,
        )  # fmt: skip
        return run.backend.submit(unit, build, job, weights, clips, qat_weights, needs=build_needs(variant, self.isa))

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any]:
        if "skipped" in value:
            raise Skipped(value["skipped"])
        folder = run.store.save_artifact(unit.key, value["files"])
        files = {"files": [run.store.relative(folder / name) for name in value.pop("files")]}
        failed = run.name_failed(f"the build of {unit.name}", value.pop("failed"))
        return files | {"artifact": read_artifact(folder).facts} | failed | value


def build(job: BuildJob, weights: bytes, clips: dict[str, SplitClips], qat_weights: bytes | None) -> dict[str, Any]:
    """Build an artifact from a checkpoint, of `clips` for "calibration" and "validation" where its method uses them.

    Returns its files, and the reasons of clips that failed, by name. {"skipped": reason} when this machine cannot build
    it.
    """
    import torch

    from qray.engines import registry
    from qray.engines.artifact import BuildRequest
    from qray.model.training import load_checkpoint
    from qray.units.work import fixed_batches, model_from_state

    started = time.time()
    # Ray may run this in a process that has trained: AOTInductor's code and float sums depend on the count it left.
    torch.set_num_threads(max(1, int(job.slot_cpus)))
    reason = registry.missing_requirement(job.variant, job.isa)
    if reason:
        return {"skipped": reason}
    torch.manual_seed(0)
    batches: dict[str, list[torch.Tensor]] = {"calibration": [], "validation": []}
    failed: dict[str, str] = {}
    for use, chosen in clips.items():
        name = f"{use} of {job.variant.name}"
        batches[use], missed = fixed_batches(
            chosen, job.clip, job.calibration_batch, job.slot_cpus, job.timeout_s, name
        )
        failed |= named_failures(chosen.clips, missed)
    qat_state = load_checkpoint(qat_weights)["model"] if qat_weights is not None else None
    request = BuildRequest(
        variant=job.variant, model=model_from_state(job.model, weights), clip=job.clip,
        calibration=batches["calibration"], qat_state=qat_state, qat_settings=job.qat_settings,
        validation=batches["validation"], isa=job.isa,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="qray-build-") as folder:
        try:
            artifact = registry.build_artifact(request, job.key, Path(folder) / job.key)
        except Unavailable as error:
            return {"skipped": str(error)}
        seconds = time.time() - started
        return {"files": pack_folder(artifact.folder), "failed": failed, "build_s": seconds, **whereabouts()}
