"""Evaluation: an actor that predicts every clip with one artifact. Light: engines import what they need, and few need
torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qray.data.stream import Batch, stream_batches
from qray.errors import Diverged
from qray.orchestrate.clips import SplitClips, named_failures
from qray.orchestrate.placement import whereabouts
from qray.orchestrate.store import unpack_folder
from qray.orchestrate.tasks import EvaluateJob


class Evaluator:
    """An actor that predicts every clip of the given splits with one artifact, loaded from its files."""

    def __init__(self, job: EvaluateJob, files: dict[str, bytes]) -> None:
        from qray.variants.registry import load_artifact

        self.job = job
        self._folder = tempfile.TemporaryDirectory(prefix="qray-evaluate-")
        unpack_folder(files, Path(self._folder.name))
        self._predict = load_artifact(Path(self._folder.name), threads=1)

    def __repr__(self) -> str:
        return f"evaluate:{self.job.name}"

    def evaluate(self, splits: dict[str, SplitClips]) -> dict[str, Any]:
        """{split: (predictions float64 (N,), NaN where the clip failed, {clip: reason})}, in manifest order, and the
        whereabouts."""
        from qray.orchestrate.telemetry import Telemetry

        name = f"evaluate {self.job.name}"
        telemetry = Telemetry(self.job.name, self.job.board, sum(len(part.clips) for part in splits.values()))
        results: dict[str, Any] = {"whereabouts": whereabouts()}
        for split, part in splits.items():
            plan = self.job.plan
            stream = stream_batches(part.dataset(plan), plan, f"{name} {split}")
            predicted, failed = predict_stream(self._predict, stream, len(part.clips), telemetry.clips)
            part.check(f"evaluation on {split}", failed)
            results[split] = (predicted, named_failures(part.clips, failed))
            errors = np.abs(predicted - part.clips["target"].to_numpy())
            telemetry.mae(split, float(np.nanmean(errors)) if np.isfinite(errors).any() else float("nan"))
        telemetry.end()
        return results


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
