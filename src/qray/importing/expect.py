"""The user's own predictions against qray's, clip by clip, before anything is quantized; and where they differ, which
other way of reading clips would have given them."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from qray.data.decode import ClipError, decode_frames, evaluation_indices
from qray.errors import QrayError, UsageError
from qray.model.regressor import CHANNELS, VideoRegressor
from qray.storage.cache import local_copy
from qray.study_model import Channels, ClipSpec, Imported, Input

#: Clips on which other ways are tried, and how many changes are put together at most.
TRIED_CLIPS, CHANGES = 4, 3
#: Differences up to this share of the predictions' spread are those of decoders: a few grey levels where colours meet.
TOLERANCE = 0.05
#: From this correlation on, predictions differ in scale and shift alone.
LINEAR = 0.9999
#: Mean and standard deviation of TRAIN clips in a range and an order of colours.
Statistics = Callable[[str, str], tuple[Channels, Channels]]


def read_expected(path: Path) -> dict[str, float]:
    """Predictions by clip from a CSV file: the clip first, the prediction last in each line; a header may name them.
    Several lines of a clip, such as one for each of its windows, are averaged.

    Raises:
        UsageError: there is no such file, or a line of it holds no number.
    """
    found: dict[str, list[float]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, line in enumerate(csv.reader(file), 1):
                if len(line) < 2:
                    continue
                try:
                    value = float(line[-1])
                except ValueError:
                    value = math.nan
                if math.isfinite(value):
                    found.setdefault(line[0].strip(), []).append(value)
                elif number > 1:
                    raise UsageError(f"{path}, line {number}: {line[-1]!r} is no number; expected CLIP,...,PREDICTION")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--expect: {path} cannot be read ({error})") from None
    if not found:
        raise UsageError(f"--expect: {path} holds no line of the form CLIP,PREDICTION")
    return {clip: float(np.mean(values)) for clip, values in found.items()}


def expected_clips(expected: Mapping[str, float], clips: pd.DataFrame, most: int) -> pd.DataFrame:
    """Clips of the data set that predictions are there for, at most so many, spread over the predictions' range; with
    the column "expected".

    Raises:
        UsageError: none has one.
    """
    stems = {Path(name).stem: value for name, value in expected.items()}
    values = [expected.get(clip, stems.get(Path(clip).stem, math.nan)) for clip in clips["clip"]]
    known = clips.assign(expected=values).dropna(subset="expected").sort_values("expected", kind="stable")
    if known.empty:
        raise UsageError(
            f"--expect: none of its {len(expected)} clips, such as {next(iter(expected))!r}, is one of the data set, "
            f"such as {clips['clip'].iloc[0]!r}"
        )
    return known.iloc[np.unique(np.linspace(0, len(known) - 1, min(most, len(known))).round().astype(int))]


@dataclass
class Reader:
    """Reads clips as their specification says, each of them once."""

    clips: pd.DataFrame
    failed: dict[str, str] = field(default_factory=dict)
    _read: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)

    def windows(self, row: int, spec: ClipSpec) -> np.ndarray | None:
        """uint8 (W, T, S, S, 3); None of one that cannot be decoded."""
        key = (row, spec.model_dump_json())
        clip = self.clips.iloc[row]
        if key not in self._read and clip["clip"] not in self.failed:
            try:
                indices = evaluation_indices(int(clip["n_frames"]), spec)
                with local_copy(clip["path"]) as path:
                    self._read[key] = decode_frames(path, indices, spec.image_size)
            except ClipError as error:
                self.failed[clip["clip"]] = str(error)
        return self._read.get(key)

    def forget(self) -> None:
        """Let go of what was read: of what is looked at once."""
        self._read.clear()


@dataclass(frozen=True)
class Way:
    """A way to read clips, and the flags of `qray import` that say how it differs from the one that was given."""

    model: Imported
    clip: ClipSpec
    flags: tuple[str, ...] = ()


def predictions(way: Way, network: VideoRegressor, reader: Reader, rows: Sequence[int]) -> np.ndarray:
    """float64 (n,), averaged over windows; NaN of a clip that cannot be decoded. `network` is set to the way."""
    network.take(way.model)
    found = []
    for row in rows:
        windows = reader.windows(row, way.clip)
        if windows is None:
            found.append(math.nan)
            continue
        with torch.inference_mode():
            # One window at a time: a network on whole clips may need a gigabyte for each.
            found.append(float(np.mean([float(network(torch.from_numpy(w[None]))) for w in windows])))
    return np.array(found)


@dataclass(frozen=True)
class Compared:
    """clips, expected and found: as long as one another; tolerance: in target units."""

    clips: list[str]
    expected: np.ndarray
    found: np.ndarray
    tolerance: float

    @property
    def difference(self) -> np.ndarray:
        """Of clips that could be decoded, absolute; float64 (n,)."""
        return np.abs(self.found - self.expected)

    @property
    def agrees(self) -> bool:
        """Whether no clip differs by more."""
        return bool(np.nanmax(self.difference) <= self.tolerance)

    def worst(self, most: int = 5) -> list[str]:
        """The largest differences, in words."""
        order = np.argsort(-np.nan_to_num(self.difference))[:most]
        return [
            f"{self.clips[i]}: yours {self.expected[i]:.4g}, qray's {self.found[i]:.4g}"
            for i in order if np.isfinite(self.found[i])
        ]  # fmt: skip


def tolerance_of(expected: np.ndarray) -> float:
    """What decoders may differ by; predictions of one and the same value get a hundredth of it."""
    spread = float(np.std(expected))
    return TOLERANCE * spread if spread > 0 else max(0.01 * abs(float(expected[0])), 1e-6)


def compare(way: Way, network: VideoRegressor, reader: Reader, tolerance: float | None) -> Compared:
    """All clips of a reader, the way that was given.

    Raises:
        QrayError: none could be decoded.
    """
    expected = reader.clips["expected"].to_numpy(np.float64)
    found = predictions(way, network, reader, range(len(expected)))
    if not np.isfinite(found).any():
        first = next(iter(reader.failed.items()), ("", "the network gives no number"))
        raise QrayError(f"--expect: no clip could be predicted; the first: {first[0]}: {first[1]}")
    clips = reader.clips["clip"].astype(str).tolist()
    return Compared(clips, expected, found, tolerance if tolerance is not None else tolerance_of(expected))


def _words(values: Channels) -> str:
    return ",".join(f"{value:g}" for value in values)


def other_ways(way: Way, from_train: Statistics) -> Iterator[Way]:
    """Each differs from a way by one thing that pipelines are known to do otherwise."""
    model, clip = way.model, way.clip

    def inputs(flags: str, **changes: object) -> Way:
        changed = Input.model_validate(model.input.model_dump() | changes)
        return Way(model.model_copy(update={"input": changed}), clip, (*way.flags, flags))

    def clips(flags: str, **changes: object) -> Way:
        return Way(model, ClipSpec.model_validate(clip.model_dump() | changes), (*way.flags, flags))

    zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    colour, other = model.input.colour, "rgb" if model.input.colour == "bgr" else "bgr"
    for span in ("0-255", "0-1"):
        known = {"0,0,0": (zeros, ones), "from_train": from_train(span, colour)}
        if span == "0-1":
            known |= {_words(mean): (mean, std) for mean, std in CHANNELS.values()} | {"0.5,0.5,0.5": ((0.5,) * 3,) * 2}
        for mean, (m, s) in known.items():
            std = "" if mean == "from_train" else f" --std {_words(s)}"
            if (span, m, s) != (model.input.range, model.input.mean, model.input.std):
                yield inputs(f"--range {span} --mean {mean}{std}", range=span, mean=m, std=s)
    own = model.input.mean, model.input.std
    # What was measured is measured anew in the other order; what was given is given for the network's channels.
    m, s = from_train(model.input.range, other) if own == from_train(model.input.range, colour) else own
    yield inputs(f"--colour {other}", colour=other, mean=m, std=s)
    for stride in (1, 2, 3, 4, 8):
        if stride != clip.stride and clip.sampling != "uniform":
            yield clips(f"--stride {stride}", stride=stride)
    for sampling in ("first", "window", "uniform"):
        if sampling != clip.sampling:
            yield clips(f"--sampling {sampling}", sampling=sampling)
    for windows in (1, 3, 10):
        if clip.sampling == "window" and windows != clip.eval_windows:
            yield clips(f"--windows {windows}", eval_windows=windows)


def explain(
    way: Way, network: VideoRegressor, reader: Reader, given: Compared,
    from_train: Statistics, say: Callable[[str], None],
) -> tuple[Way, float] | None:  # fmt: skip
    """The way, a few changes away, that gives the expected predictions best, and the largest difference that it leaves
    on the clips tried; None where none gives clearly better ones."""
    worst = np.argsort(-np.nan_to_num(given.difference))[:TRIED_CLIPS]
    rows, expected = [int(row) for row in worst], given.expected[worst]

    def distance(tried: Way) -> tuple[float, Way]:
        found = predictions(tried, network, reader, rows)
        good = np.isfinite(found)
        if good.sum() > 2 and np.std(found[good]) > 0 and np.corrcoef(found[good], expected[good])[0, 1] > LINEAR:
            scale, shift = np.polyfit(found[good], expected[good], 1)
            if abs(scale - 1) > 1e-3 or abs(shift) > given.tolerance:
                new = {"scale": float(tried.model.scale * scale), "shift": float(tried.model.shift * scale + shift)}
                flags = (*tried.flags, f"--scale {new['scale']:.6g} --shift {new['shift']:.6g}")
                tried, found = Way(tried.model.model_copy(update=new), tried.clip, flags), found * scale + shift
        return float(np.nanmax(np.abs(found - expected))), tried

    best = begun = distance(way)
    for _ in range(CHANGES):
        if best[0] <= given.tolerance:
            break
        found = []
        for tried in other_ways(best[1], from_train):
            found.append(distance(tried))
            if found[-1][0] <= given.tolerance:
                break
        nearest = min(found, key=lambda each: each[0])
        say(f"tried {len(found)} other ways to read clips: {' '.join(nearest[1].flags)} leaves {nearest[0]:.3g}")
        if nearest[0] > 0.8 * best[0]:
            break
        best = nearest
    return (best[1], best[0]) if best[0] < 0.5 * max(begun[0], float(np.nanmax(given.difference))) else None
