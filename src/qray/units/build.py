"""Builds: an artifact from the weights that its method needs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qray.engines.artifact import read_artifact
from qray.engines.catalog import ENGINES
from qray.engines.registry import build_needs, depends_on_isa, missing_requirement, processes
from qray.errors import Unavailable
from qray.graph.store import pack_folder
from qray.graph.unit import Resources, Skipped, Task, Unit
from qray.model.epoch import Checkpoint
from qray.scratch import scratch_folder
from qray.study import INT8_METHODS, Calibration, Study, Variant
from qray.units.clips import Job, SplitClips, calibration_clips, named_failures, parity_clips
from qray.units.context import RunContext
from qray.units.devices import device_of, on_gpu


def build_unit(
    study: Study, variant: Variant, isa: str, train: Unit, sweep: Unit | None, finetune: Unit | None,
    digests: Mapping[str, str], fixed: str | None = None, gpu: str | None = None,
) -> Unit:  # fmt: skip
    """The artifact of a variant, for an instruction set. finetune: of its weight width, where its method is that.
    fixed: why the network cannot be trained, where it cannot. gpu: of the run (`Machine.gpu_name`)."""
    depends: dict[str, Any] = {
        "variant": variant.settings(), "clip": study.clip.frames_read()
    }  # fmt: skip
    if fixed is not None and variant.of_sweep:
        return Unit("build", variant.name, Build(variant, isa, fixed), depends | {"train": train})
    if ENGINES[variant.engine].built_there:
        depends |= on_gpu(variant.device, gpu)
    depends |= {"finetune": finetune} if variant.method == "finetune" else {"train": train}
    if variant.method == "qat":
        depends["sweep"] = sweep
    if variant.method in INT8_METHODS:
        depends |= {"parity_clips": study.parity.clips, "val": digests["VAL"], "seed": study.seed}
    if variant.method in INT8_METHODS and variant.weight_bits == 4:
        depends["packed"] = True
    if variant.method == "ptq":
        depends |= {"calibration": _calibration(study, variant), "clips": digests["TRAIN"]}
    if depends_on_isa(variant):
        depends["isa"] = isa
    return Unit("build", variant.name, Build(variant, isa), depends)


def _calibration(study: Study, variant: Variant) -> Calibration:
    clips = variant.calibration_clips or study.calibration.clips
    return study.calibration.model_copy(update={"clips": clips})


@dataclass
class Build(Task):
    """An artifact, built where it can be tried."""

    variant: Variant
    isa: str
    #: Why no machine can build it.
    never: str | None = None
    version = 6

    def __post_init__(self) -> None:
        there = device_of(self.variant.device) if ENGINES[self.variant.engine].built_there else {}
        self.resources = Resources(processes=processes(self.variant), **there)

    def impossible(self) -> str | None:
        return self.never or missing_requirement(self.variant, self.isa)

    def start(self, unit: Unit, run: RunContext) -> Any:
        study, variant = run.study, self.variant
        weights = run.checkpoint((unit.depends.get("finetune") or unit.depends["train"]).key)
        clips, qat = {}, None
        if variant.method == "ptq":
            clips["calibration"] = run.clips(calibration_clips(study, run.manifest, variant.calibration_clips))
        if variant.method in INT8_METHODS:
            clips["validation"] = run.clips(parity_clips(study, run.manifest))
        if variant.method == "qat":
            best = run.best_trial(unit.depends["sweep"], variant.weight_bits)
            qat = run.checkpoint(best["key"]), best["qat"]
        return run.backend.submit(
            unit, build, run.job, variant, unit.key, self.isa, weights, clips, qat,
            needs=build_needs(variant, self.isa),
        )  # fmt: skip

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any]:
        if "skipped" in value:
            raise Skipped(value["skipped"])
        built = value.pop("files")
        folder = run.store.save_artifact(unit.key, built)
        run.keep_artifact(unit.key, built)
        files = {"files": [run.store.relative(folder / name) for name in built]}
        failed = run.name_failed(f"the build of {unit.name}", value.pop("failed"))
        return files | {"artifact": read_artifact(folder).facts} | failed | value


def build(
    job: Job, variant: Variant, key: str, isa: str, weights: Checkpoint, clips: dict[str, SplitClips],
    qat: tuple[Checkpoint, dict[str, Any]] | None,
) -> dict[str, Any]:  # fmt: skip
    """Build an artifact from a checkpoint, of `clips` for "calibration" and "validation" where its method uses them.

    qat: the checkpoint of the best trial, and the `QatSettings` that it fits, where its method is that.
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
    reason = registry.missing_requirement(variant, isa)
    if reason:
        return {"skipped": reason}
    torch.manual_seed(0)
    batches: dict[str, list[torch.Tensor]] = {"calibration": [], "validation": []}
    failed: dict[str, str] = {}
    for use, chosen in clips.items():
        batches[use], missed = fixed_batches(chosen, job, f"{use} of {variant.name}")
        failed |= named_failures(chosen.clips, missed)
    request = BuildRequest(
        variant=variant, model=model_from_state(job.study.model, weights), clip=job.study.clip,
        calibration=batches["calibration"], qat_state=load_checkpoint(qat[0])["model"] if qat else None,
        qat_settings=qat[1] if qat else None, validation=batches["validation"], isa=isa, seed=job.study.seed,
    )  # fmt: skip
    with scratch_folder("build") as folder:
        try:
            artifact = registry.build_artifact(request, key, folder / key)
        except Unavailable as error:
            return {"skipped": str(error)}
        seconds = time.time() - started
        return {"files": pack_folder(artifact.folder), "failed": failed, "build_s": seconds}
