"""What import checks on the data set: the statistics of its pixels, what the network sees and predicts, and whether
that is what its own pipeline predicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qray.errors import QrayError
from qray.importing.expect import Reader, Statistics, Way, compare, expected_clips, explain, read_expected
from qray.model.regressor import VideoRegressor
from qray.study_model import Channels, ClipSpec, Imported

if TYPE_CHECKING:
    import pandas as pd

#: Clips whose pixels give mean and standard deviation, as EchoNet-Dynamic's own code takes them, and the seed that
#: draws them; and clips of VAL on which the labels are looked at.
STATISTICS_CLIPS, STATISTICS_SEED, VAL_CLIPS = 128, 0, 32


def pixel_statistics(clips: pd.DataFrame, clip: ClipSpec) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float64 (3,), of red, green and blue in 0-255, of some TRAIN clips."""
    train = clips[clips["split"] == "TRAIN"].reset_index(drop=True)
    chosen = np.random.default_rng(STATISTICS_SEED).permutation(len(train))[:STATISTICS_CLIPS]
    reader, total, squares, count = Reader(train), np.zeros(3), np.zeros(3), 0
    for row in sorted(chosen):
        windows = reader.windows(int(row), clip.single_window())
        if windows is not None:
            pixels = windows.reshape(-1, 3).astype(np.float64)
            total, squares, count = total + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
            reader.forget()
    if not count:
        raise QrayError("--mean from_train: no TRAIN clip could be decoded")
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 1e-6))


def as_read(values: np.ndarray, span: str, colour: str) -> Channels:
    """Three numbers of `pixel_statistics` in a range and an order of colours, as they are written."""
    shown = values[:: -1 if colour == "bgr" else 1] / (255.0 if span == "0-1" else 1.0)
    first, second, third = (float(f"{value:.6g}") for value in shown)
    return first, second, third


def look(network: VideoRegressor, clip: ClipSpec, clips: pd.DataFrame, say: Callable[..., None]) -> dict[str, Any]:
    """What the network sees of VAL clips, and how far from their labels it is."""
    val = clips[clips["split"] == "VAL"].sort_values("target", kind="stable")
    val = val.iloc[np.unique(np.linspace(0, len(val) - 1, min(VAL_CLIPS, len(val))).round().astype(int))]
    reader, inputs, predicted = Reader(val), [], []
    for row in range(len(val)):
        windows = reader.windows(row, clip.single_window())
        if windows is None:
            predicted.append(math.nan)
            continue
        with torch.inference_mode():
            batch = torch.from_numpy(windows)
            seen = network.normalize(batch)
            inputs.append((float(seen.mean()), float(seen.std())))
            predicted.append(float(network(batch)))
        reader.forget()
    if not inputs:
        raise QrayError(
            f"no VAL clip could be decoded; the first: {next(iter(reader.failed.values()), 'there is none')}"
        )
    means, stds = np.mean([mean for mean, _ in inputs]), np.mean([std for _, std in inputs])
    say(
        f"decoded {len(inputs)} of {len(val)} VAL clips; the network's input has mean {means:.3g} and standard "
        f"deviation {stds:.3g}"
    )
    values, target = np.array(predicted), val["target"].to_numpy(np.float64)
    if np.isfinite(values).sum() < len(inputs):
        raise QrayError("the network's predictions are not finite numbers: its input is not what it was trained on")
    train = clips.loc[clips["split"] == "TRAIN", "target"].mean()
    mae, baseline = float(np.nanmean(np.abs(values - target))), float(np.mean(np.abs(target - train)))
    say(f"MAE on them {mae:.3g}; of the mean TRAIN target {baseline:.3g}")
    if not mae < baseline:
        say(
            "WARNING: the model predicts these clips no better than the mean target does: its preprocessing, its clips "
            "or its scale are likely others than those above (--expect finds out)", "bold yellow",
        )  # fmt: skip
    return {"val_clips": len(inputs), "val_mae": round(mae, 6), "mean_predictor_mae": round(baseline, 6)}


def compare_with_own(
    expect: Path, most: int, tolerance: float | None, model: Imported, clip: ClipSpec, network: VideoRegressor,
    clips: pd.DataFrame, from_train: Statistics, say: Callable[..., None],
) -> dict[str, Any]:  # fmt: skip
    """Compare with the user's own predictions.

    Raises:
        QrayError: they differ; it says where the difference comes from, if that can be found.
    """
    chosen = expected_clips(read_expected(expect), clips, most)
    reader, way = Reader(chosen), Way(model, clip)
    given = compare(way, network, reader, tolerance)
    differences = given.difference[np.isfinite(given.difference)]
    largest = float(differences.max())
    summary = f"median difference {np.median(differences):.3g}, largest {largest:.3g}, tolerance {given.tolerance:.3g}"
    if given.agrees:
        say(f"your predictions: {len(differences)} of {len(chosen)} clips agree: {summary}", "green")
        return {
            "clips": len(differences),
            "largest_difference": round(largest, 6),
            "tolerance": round(given.tolerance, 6),
        }
    say(f"your predictions differ: {summary}; trying other ways to read clips ...", "yellow")
    found = explain(way, network, reader, given, from_train, say)
    beyond = int((differences > given.tolerance).sum())
    text = (
        f"your preprocessing differs: {beyond} of {len(differences)} clips differ by more than {given.tolerance:.3g}, "
        f"by up to {largest:.3g}: {'; '.join(given.worst())}"
    )
    if found is None:
        raise QrayError(f"{text}; no other range, normalisation, colour order, stride, sampling or scale explains it")
    other, left = found
    word = "all clips tried agree" if left <= given.tolerance else f"the largest difference is {left:.3g}"
    raise QrayError(
        f"{text}; with {' '.join(other.flags)} {word}: import it again with that, if it is what you trained with"
    )
