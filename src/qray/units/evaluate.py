"""Evaluation on TEST: an actor for each artifact, and the mean predictor. Light: engines import what they need, and few
need torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qray.data.stream import Batch, StreamPlan, stream_batches
from qray.engines.artifact import read_artifact
from qray.errors import Diverged
from qray.graph.placement import whereabouts
from qray.graph.store import pack_folder, unpack_folder
from qray.graph.telemetry import Telemetry
from qray.graph.unit import Resources, Task, Unit
from qray.study import Study, Variant
from qray.units.clips import SplitClips, named_failures
from qray.units.context import RunContext

BASELINE = "mean-predictor"


@dataclass(frozen=True)
class EvaluateJob:
    """What is evaluated: the name it has in the dashboard, and the stream it reads."""

    name: str
    plan: StreamPlan
    board: Any


def evaluate_unit(study: Study, variant: Variant, build: Unit, digests: Mapping[str, str]) -> Unit:
    """One finished artifact on TEST."""
    return Unit(
        "evaluate", variant.name, Evaluate(build), {"build": build, "clip": study.clip, "test": digests["TEST"]}
    )


def baseline_unit(digests: Mapping[str, str]) -> Unit:
    """The mean TRAIN target for every TEST clip."""
    return Unit("evaluate", BASELINE, MeanPredictor(), {"baseline": digests["TRAIN"], "test": digests["TEST"]})


@dataclass
class Evaluate(Task):
    """Predictions of an actor that loads the artifact from its files."""

    build: Unit

    def start(self, unit: Unit, run: RunContext) -> Any:
        folder = run.store.artifact_folder(self.build.key)
        job = EvaluateJob(unit.name, run.eval_plan(run.study.clip), run.backend.board)
        return run.backend.submit(unit, Evaluator, job, pack_folder(folder), run.split("TEST"),
                                  needs=read_artifact(folder).built.needs)  # fmt: skip

    def finish(self, unit: Unit, run: RunContext, value: dict[str, Any]) -> dict[str, Any]:
        clips = run.manifest.split("TEST")
        path = run.store.save_predictions(unit.key, "TEST", clips, value["predicted"], run.study.seed)
        missed = run.name_failed("evaluation on TEST", value["failed"])
        return {"files": [run.store.relative(path)]} | missed | value["whereabouts"]


class MeanPredictor(Task):
    """Needs no model, so the driver writes it."""

    resources = Resources(slots=0)

    def start(self, unit: Unit, run: RunContext) -> Any:
        return run.backend.done()

    def finish(self, unit: Unit, run: RunContext, value: None) -> dict[str, Any]:
        clips, mean = run.manifest.split("TEST"), float(run.manifest.split("TRAIN")["target"].mean())
        path = run.store.save_predictions(unit.key, "TEST", clips, np.full(len(clips), mean), run.study.seed)
        return {"files": [run.store.relative(path)]}


class Evaluator:
    """An actor that predicts the clips of a split with one artifact, loaded from its files."""

    def __init__(self, job: EvaluateJob, files: dict[str, bytes], clips: SplitClips) -> None:
        from qray.engines.registry import load_artifact

        self.job, self.clips = job, clips
        self._folder = tempfile.TemporaryDirectory(prefix="qray-evaluate-")
        unpack_folder(files, Path(self._folder.name))
        self._predict = load_artifact(Path(self._folder.name), threads=1)

    def __repr__(self) -> str:
        return f"evaluate:{self.job.name}"

    def run(self) -> dict[str, Any]:
        """{"predicted": float64 (N,), NaN where the clip failed, in manifest order, "failed": reasons by clip,
        "whereabouts"}."""
        clips, plan = self.clips, self.job.plan
        telemetry = Telemetry(self.job.name, self.job.board, len(clips.clips))
        stream = stream_batches(clips.dataset(plan), plan, f"evaluate {self.job.name} TEST")
        predicted, failed = predict_stream(self._predict, stream, len(clips.clips), telemetry.clips)
        clips.check("evaluation on TEST", failed)
        errors = np.abs(predicted - clips.clips["target"].to_numpy())
        telemetry.mae("TEST", float(np.nanmean(errors)) if np.isfinite(errors).any() else float("nan"))
        telemetry.end()
        return {
            "predicted": predicted, "failed": named_failures(clips.clips, failed), "whereabouts": whereabouts()
        }  # fmt: skip


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
