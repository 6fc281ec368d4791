"""Evaluation on TEST of each artifact, and of the mean predictor; and on VAL of those that are to be chosen from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qray.errors import Diverged
from qray.graph.store import Files, unpack_folder
from qray.graph.unit import Resources, Task, Unit
from qray.point import CPU
from qray.scratch import scratch_folder
from qray.study import Study, Variant
from qray.units.clips import Job, SplitClips, named_failures
from qray.units.context import RunContext
from qray.units.devices import device_of, on_gpu

if TYPE_CHECKING:
    from qray.data.stream_plan import Batch, StreamPlan

BASELINE = "mean-predictor"


def evaluate_unit(
    study: Study, variant: Variant, build: Unit, digests: Mapping[str, str], gpu: str | None = None
) -> Unit:
    """One finished artifact on TEST, on the device that it was built for. gpu: of the run (`Machine.gpu_name`)."""
    depends = {"build": build, "clip": study.clip, "test": digests["TEST"]} | on_gpu(variant.device, gpu)
    return Unit("evaluate", variant.name, Evaluate(build, device=variant.device), depends)


def predict_unit(study: Study, build: Unit, digests: Mapping[str, str]) -> Unit:
    """An artifact on VAL, to choose by."""
    depends = {"build": build, "clip": study.clip.single_window(), "val": digests["VAL"]}
    return Unit("predict", build.name, Evaluate(build, "VAL"), depends, title=f"predict VAL by {build.name}")


def baseline_unit(digests: Mapping[str, str]) -> Unit:
    """The mean TRAIN target for every TEST clip."""
    return Unit("evaluate", BASELINE, MeanPredictor(), {"baseline": digests["TRAIN"], "test": digests["TEST"]})


@dataclass
class Evaluate(Task):
    """Predictions of a task that loads the artifact from its files."""

    build: Unit
    split: str = "TEST"
    device: str = CPU

    def __post_init__(self) -> None:
        self.resources = Resources(**device_of(self.device))

    def start(self, unit: Unit, run: RunContext) -> Any:
        files, needs = run.artifact(self.build)
        clips = run.split(self.split)
        return run.backend.submit(unit, evaluate, run.job, unit.name, files, self.split, clips, needs=needs)

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any]:
        clips = run.manifest.split(self.split)
        path = run.store.save_predictions(unit.key, self.split, clips, value.pop("predicted"), run.study.seed)
        failed = run.name_failed(f"evaluation on {self.split}", value.pop("failed"))
        return {"files": [run.store.relative(path)]} | failed | value


class MeanPredictor(Task):
    """Needs no model, so the driver writes it."""

    resources = Resources(slots=0)

    def start(self, unit: Unit, run: RunContext) -> Any:
        return run.backend.done()

    def finish(self, unit: Unit, run: RunContext, value: None) -> dict[str, Any]:
        clips, mean = run.manifest.split("TEST"), float(run.manifest.split("TRAIN")["target"].mean())
        path = run.store.save_predictions(unit.key, "TEST", clips, np.full(len(clips), mean), run.study.seed)
        return {"files": [run.store.relative(path)]}


def evaluate(job: Job, name: str, files: Files, split: str, clips: SplitClips) -> dict[str, Any]:
    """{"predicted": float64 (N,), NaN where the clip failed, in manifest order, "failed": reasons by clip} of an
    artifact's files, on clips of a split. name: what the dashboard calls it."""
    from qray.engines.registry import load_artifact
    from qray.graph.telemetry import Telemetry

    plan, telemetry = job.split_plan(split), Telemetry("evaluate", name, job.board, len(clips.clips))
    with scratch_folder("evaluate") as folder:
        unpack_folder(files, folder)
        predict = load_artifact(folder, threads=1, allow_code=True)
        predicted, failed, mae = predict_split(
            predict, clips, plan, f"evaluate {name} {split}", f"evaluation on {split}", telemetry.clips
        )
    telemetry.mae(split, mae)
    telemetry.end()
    return {"predicted": predicted, "failed": failed}


def predict_split(
    predict: Any, clips: SplitClips, plan: StreamPlan, stream: str, use: str, count: Any = lambda n: None
) -> tuple[np.ndarray, dict[str, str], float]:
    """Predictions of clips, as `predict_stream`, the reasons of those that failed by name, and the MAE of the others
    (NaN where there are none). stream: the name of the stream; use: what they are predicted for.

    Raises:
        QrayError: more clips than may fail. Diverged: as `predict_stream`.
    """
    from qray.data.stream import stream_batches

    batches = stream_batches(clips.datasets(plan, stream), plan, stream)
    predicted, failed = predict_stream(predict, batches, len(clips.clips), count)
    clips.check(use, failed)
    errors = np.abs(predicted - clips.clips["target"].to_numpy())
    mae = float(np.nanmean(errors)) if len(failed) < len(errors) else float("nan")
    return predicted, named_failures(clips.clips, failed), mae


def predict_stream(
    predict: Any, stream: Iterator[Batch], n_clips: int, count: Any = lambda n: None
) -> tuple[np.ndarray, dict[int, str]]:
    """Predictions float64 (n_clips,) of a stream, averaged over windows, and the reasons of clips that failed (NaN).

    Raises:
        Diverged: a clip that could be read has a prediction that is not finite.
    """
    predicted = np.full(n_clips, np.nan)
    failed: dict[int, str] = {}
    for batch in stream:
        failed |= batch.failed
        good = batch.frames[batch.ok]
        if len(good):
            outputs = predict(good.reshape(-1, *good.shape[2:]))
            predicted[batch.index[batch.ok]] = np.asarray(outputs, np.float64).reshape(good.shape[:2]).mean(1)
        count(len(batch.index))
    unreal = n_clips - int(np.isfinite(predicted).sum()) - len(failed)
    if unreal:
        # Left as NaN they would pass for clips that could not be read, and flatter the mean of the others.
        raise Diverged(f"{unreal} of {n_clips} predictions are not finite")
    return predicted, failed
