"""What the tasks that need torch do: training, its curve, and builds. None of them writes to OUT."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
import torch

from qray.data.stream import Batch, StreamPlan, clip_dataset, stream_batches
from qray.errors import QrayError, Unavailable
from qray.measure.host import cpu_flags, usable_cpus
from qray.model.regressor import VideoRegressor, build_regressor
from qray.model.training import FitSettings, TrainBatch, fit, load_checkpoint, resolve_precision
from qray.orchestrate.clips import SplitClips, named_failures
from qray.orchestrate.evaluation import predict_stream
from qray.orchestrate.placement import whereabouts
from qray.orchestrate.store import pack_folder
from qray.orchestrate.tasks import BuildJob, EvaluateJob, LayersJob, TrainJob
from qray.study import ClipSpec, Model, Variant


def training_device() -> str:
    """The device a training task was given."""
    return "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"


def training_threads(share: int = 1) -> int:
    """CPU threads of one of `share` training tasks that run at once on this node."""
    return max(1, usable_cpus() // share)


def target_statistics(clips: pd.DataFrame) -> tuple[float, float]:
    """Mean and standard deviation of the TRAIN targets, target units."""
    std = float(clips["target"].std(ddof=0))
    if not std > 0:
        raise QrayError(f"all {len(clips)} TRAIN targets are {clips['target'].iloc[0]:g}: there is nothing to learn")
    return float(clips["target"].mean()), std


def new_model(study_model: Model, clips: pd.DataFrame, seed: int) -> VideoRegressor:
    """The untrained model of a study."""
    mean, std = target_statistics(clips) if study_model.standardize_target else (0.0, 1.0)
    return build_regressor(study_model, mean, std, seed)


def model_from_state(study_model: Model, state: dict[str, torch.Tensor]) -> VideoRegressor:
    """A trained model in eval mode from the state_dict of a checkpoint."""
    model = VideoRegressor(study_model)
    model.load_state_dict(state)
    return model.eval()


def to_train_batches(batches: Iterator[Batch], targets: np.ndarray, failed: dict[int, str]) -> Iterator[TrainBatch]:
    """Add targets to streamed batches; a clip that failed gets weight 0 and its reason goes into `failed`."""
    for batch in batches:
        failed |= batch.failed
        yield TrainBatch(
            torch.from_numpy(batch.frames).squeeze(1),
            torch.from_numpy(targets[batch.index].astype(np.float32)),
            torch.from_numpy(batch.ok.astype(np.float32)),
        )


def train(job: TrainJob, train_clips: SplitClips, start: bytes | None, resume: bytes | None) -> Iterator[Any]:
    """Yield an EpochResult after each epoch. The last item is {"failed": {clip: reason}, "device", "train_s" (seconds
    of all epochs)} and the whereabouts."""
    from qray.orchestrate.telemetry import Telemetry

    device = training_device()
    torch.set_num_threads(training_threads())
    torch.manual_seed(job.seed)
    if start is None:
        model = new_model(job.model, train_clips.clips, job.seed)
    else:
        model = model_from_state(job.model, load_checkpoint(start)["model"])
    model.channels_last().train()
    plan = StreamPlan(
        job.clip, "train", job.training.batch_size, job.seed,
        first_epoch=int(load_checkpoint(resume)["epoch"]) + 1 if resume else 0,
        epochs=job.training.epochs, cpus_per_task=job.slot_cpus, timeout_s=job.timeout_s,
    )  # fmt: skip
    failed: dict[int, str] = {}
    targets = train_clips.clips["target"].to_numpy()
    dataset = clip_dataset(train_clips.ref, len(train_clips.clips), plan)
    batches = to_train_batches(stream_batches(dataset, plan, job.name), targets, failed)
    settings = FitSettings(
        job.training, plan.steps_per_epoch(len(targets)), model.target_spread, job.seed,
        resolve_precision(job.training, device, bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})), device,
    )  # fmt: skip
    per_epoch = plan.rows_per_epoch(len(targets))
    telemetry = Telemetry(job.name, job.board, plan.epochs * per_epoch, plan.first_epoch * per_epoch)

    def freeze(epoch: int) -> None:
        if epoch >= job.freeze_batch_norm_at * job.training.epochs:
            for module in model.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.eval()

    train_s = float(load_checkpoint(resume)["seconds"]) if resume else 0.0
    for result in fit(model, batches, settings, resume, on_epoch_start=freeze, on_step=telemetry.step):
        train_s = result.seconds_so_far
        train_clips.check("training", failed)
        yield result
    telemetry.end()
    missed = named_failures(train_clips.clips, failed)
    yield {"failed": missed, "device": device, "train_s": train_s, **whereabouts()}


def fixed_batches(
    clips: SplitClips, clip: ClipSpec, batch_size: int, slot_cpus: float, timeout_s: float, name: str
) -> tuple[list[torch.Tensor], dict[int, str]]:
    """What observers see: one window of each clip, as training sees them, but fixed; uint8 (b, T, H, W, 3). And the
    reasons of clips that failed. `name` says what they are for.

    Raises:
        QrayError: more of them than may fail.
    """
    plan = StreamPlan(clip.single_window(), "eval", batch_size, cpus_per_task=slot_cpus, timeout_s=timeout_s)
    dataset = clip_dataset(clips.ref, len(clips.clips), plan)
    failed: dict[int, str] = {}
    batches = []
    for batch in stream_batches(dataset, plan, name):
        failed |= batch.failed
        if batch.ok.any():
            batches.append(torch.from_numpy(batch.frames[batch.ok]).flatten(0, 1))
    clips.check(name, failed)
    return batches, failed


def build(job: BuildJob, weights: bytes, clips: dict[str, SplitClips], qat_weights: bytes | None) -> dict[str, Any]:
    """Build an artifact from a checkpoint, of `clips` for "calibration" and "validation" where its method uses them.

    Returns its files, and the reasons of clips that failed, by name. {"skipped": reason} when this machine cannot build
    it.
    """
    from qray.variants import registry
    from qray.variants.artifact import BuildRequest

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
        variant=job.variant, model=model_from_state(job.model, load_checkpoint(weights)["model"]), clip=job.clip,
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


def validate(job: EvaluateJob, model: Model, checkpoint: bytes, val: SplitClips) -> dict[str, Any]:
    """{"val_mae"} of the FP32 weights after an epoch, while training goes on, and "failed": reasons by clip."""
    from qray.orchestrate.telemetry import Telemetry

    torch.set_num_threads(1)
    network = model_from_state(model, load_checkpoint(checkpoint)["model"]).channels_last()
    plan = job.plan

    def predict(clips: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(clips)).numpy()

    predicted, failed = predict_stream(predict, stream_batches(val.dataset(plan), plan, job.name), len(val.clips))
    val.check("the validation curve", failed)
    mae = float(np.nanmean(np.abs(predicted - val.clips["target"].to_numpy())))
    Telemetry(job.name).mae("VAL", mae)
    return {"val_mae": mae, "failed": named_failures(val.clips, failed), **whereabouts()}


def measure_layers(job: LayersJob, weights: bytes, calibration: SplitClips, val: SplitClips) -> dict[str, Any]:
    """What `variants.sensitivity.measure_layers` gives, with the reasons of clips that failed and the whereabouts."""
    from qray.variants.artifact import BuildRequest
    from qray.variants.sensitivity import layered
    from qray.variants.sensitivity import measure_layers as measure

    torch.set_num_threads(1)
    variant = Variant(
        name="sensitivity", method="ptq", engine="inductor", weight_bits=job.settings.weight_bits,
        observer=job.settings.observer,
    )  # fmt: skip
    plan = job.plan
    observed, missed = fixed_batches(
        calibration, job.clip, job.calibration_batch, plan.cpus_per_task, plan.timeout_s, f"calibrate {job.title}"
    )
    model = model_from_state(job.model, load_checkpoint(weights)["model"])
    network = layered(BuildRequest(variant, model, job.clip, observed, isa=job.isa))
    failed: dict[int, str] = {}

    def batches() -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for batch in stream_batches(val.dataset(plan), plan, f"sensitivity {job.title}"):
            failed.update(batch.failed)
            yield batch.index[batch.ok], torch.from_numpy(batch.frames[batch.ok]).squeeze(1)

    measured = measure(network, batches(), job.layers, len(val.clips))
    val.check("sensitivity", failed)
    named = named_failures(calibration.clips, missed) | named_failures(val.clips, failed)
    return measured | {"failed": named, **whereabouts()}
