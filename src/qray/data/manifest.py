"""FileList.csv and its videos -> the validated list of clips, and the rejected rows with reasons."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from qray.atomic import write_parquet
from qray.data.file_list import Row, read_file_list
from qray.data.probe import Probe, probe
from qray.errors import QrayError
from qray.measure.host import usable_cpus
from qray.progress import progress
from qray.study import Data

SPLITS = ("TRAIN", "VAL", "TEST")
SPLIT_WORDS = {
    "TRAIN": "TRAIN", "TRAINING": "TRAIN",
    "VAL": "VAL", "VALID": "VAL", "VALIDATION": "VAL", "DEV": "VAL",
    "TEST": "TEST", "TESTING": "TEST",
}  # fmt: skip
#: Endings tried, in this order, when a file name comes without one.
VIDEO_ENDINGS = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ogv", ".ts")
#: More files than this take more than two seconds to read, so progress is shown.
PROGRESS_FROM = 400
LARGEST_TARGET = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Manifest:
    """The clips of a data set.

    clips: clip (str), path (absolute, str), target (float64), split, n_frames, width, height (int64), fps (float64);
    rejected: row (line in the CSV, the header is 1), clip, reason. digest: a hash of names, contents, targets and
    splits, the same wherever the data set lies. probes: what reading the files told, to be kept for the next time.
    """

    clips: pd.DataFrame
    rejected: pd.DataFrame
    digest: str
    probes: dict[str, Probe]

    def split(self, name: str) -> pd.DataFrame:
        """The clips of one split, numbered from 0."""
        return self.clips[self.clips["split"] == name].reset_index(drop=True)


@dataclass(frozen=True)
class _Videos:
    """The files of the video folder: by the exact name, and by the name as people may write it."""

    root: Path
    exact: Mapping[str, Path]
    folded: Mapping[str, list[str]]


def _fold(name: str) -> str:
    """The same for names that differ in case or, as macOS writes them, in how an accent is composed."""
    return unicodedata.normalize("NFC", name).casefold()


def _list_videos(root: Path) -> _Videos:
    exact = {
        (Path(folder) / name).relative_to(root).as_posix(): Path(folder) / name
        for folder, _, names in os.walk(root)
        for name in names
    }
    folded: dict[str, list[str]] = {}
    for name in sorted(exact):
        folded.setdefault(_fold(name), []).append(name)
    return _Videos(root, exact, folded)


def _without_ending(name: str) -> str:
    pure = PurePosixPath(name)
    return str(pure.with_suffix("")) if pure.suffix.lower() in VIDEO_ENDINGS else name


def _locate(videos: _Videos, name: str) -> tuple[str | None, str]:
    """(key of videos.exact, "") of a row's video, or (None, reason). A file of exactly this name comes first."""
    folder = videos.root.name
    pure = PurePosixPath(name)
    if not name or not pure.parts:
        return None, "no file name"
    if pure.is_absolute() or ".." in pure.parts or re.match("[A-Za-z]:/", name):
        return None, f"the name leaves {folder}/"
    candidates = [pure.as_posix()]
    if pure.suffix.lower() not in VIDEO_ENDINGS:
        candidates = [*(pure.as_posix() + ending for ending in VIDEO_ENDINGS), pure.as_posix()]
    found = next((c for c in candidates if c in videos.exact), None)
    if found is None:
        alike = next((videos.folded[_fold(c)] for c in candidates if _fold(c) in videos.folded), [])
        if len(alike) > 1:
            return None, f"could be any of {', '.join(alike)} in {folder}/; write it as the file is called"
        if not alike:
            is_folder = os.path.isdir(videos.root / pure)  # unlike Path.is_dir, takes names of any length
            return None, f"a folder, not a file, in {folder}/" if is_folder else f"file not found in {folder}/"
        found = alike[0]
    try:
        target = videos.exact[found].resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
        return None, "a link to a file that is not there"
    if not target.is_relative_to(videos.root.resolve()):
        return None, f"a link that leaves {folder}/"
    return found, ""


def _split_by_name(name: str, data: Data) -> str:
    """A seeded draw that depends on the clip's name alone, so that adding rows moves no other clip."""
    word = hashlib.blake2b(f"{data.split_seed}:{name}".encode(), digest_size=8).digest()
    share = int.from_bytes(word, "big") / 2**64
    edges = np.cumsum(data.split_fractions)
    return SPLITS[min(int(np.searchsorted(edges, share, side="right")), 2)]


def _target(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    # Training is in float32, where larger numbers are infinite; Python alone reads 1_0 as ten.
    return value if abs(value) <= LARGEST_TARGET and "_" not in text else None


def _probe_key(path: Path, videos: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return f"{path.relative_to(videos).as_posix()}|gone"
    return f"{path.relative_to(videos).as_posix()}|{stat.st_size}|{stat.st_mtime_ns}"


def _probe_all(paths: list[Path], videos: Path, known: Mapping[str, Probe], workers: int | None) -> dict[Path, Probe]:
    keys = {path: _probe_key(path, videos) for path in paths}
    probes = {path: known[key] for path, key in keys.items() if key in known}
    fresh = [path for path in paths if path not in probes]
    # FFmpeg and the hash both release the interpreter's lock, so threads are enough.
    with ThreadPoolExecutor(workers or min(16, usable_cpus())) as pool:
        results = pool.map(probe, fresh)
        if len(fresh) < PROGRESS_FROM:
            return probes | dict(zip(fresh, results, strict=True))
        with progress("Checking videos", len(fresh), "files") as advance:
            for path, result in zip(fresh, results, strict=True):
                probes[path] = result
                advance(1)
    return probes


def _judge(rows: list[Row], videos: _Videos, data: Data) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(good, rejected) as far as the list and the folder tell.

    A name counts as seen even if its first row was bad: which of two rows is right is the user's to say.
    """
    good: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for row in rows:
        name = PurePosixPath(row.file.replace("\\", "/")).as_posix() if row.file else ""
        found, reason = _locate(videos, name)
        clip, target = _without_ending(name), _target(row.target)
        split = SPLIT_WORDS.get(row.split.upper()) if row.split else _split_by_name(clip, data)
        # One file is one name, however it is written; two files whose names differ in case are two.
        identity = _without_ending(found) if found else f"?{_fold(clip)}"
        if row.problem:
            reason = row.problem
        elif name and identity in seen:
            reason = f"the name was seen before, in line {seen[identity]}"
        elif not reason and target is None:
            reason = f"{data.target_column} is {row.target!r}, not a finite number"
        elif not reason and split is None:
            reason = f"{data.split_column} is {row.split!r}, expected TRAIN, VAL or TEST"
        if name:
            seen.setdefault(identity, row.line)
        if reason or found is None:
            rejected.append({"row": row.line, "clip": row.file, "reason": reason})
        else:
            path = videos.exact[found]
            good.append({"row": row.line, "clip": clip, "path": path, "target": target, "split": split})
    return good, rejected


def read_manifest(
    root: Path, data: Data, known: Mapping[str, Probe] | None = None, workers: int | None = None
) -> Manifest:
    """Read and check a data set.

    Bad rows are rejected one by one: no file, a name outside the video folder, a file that is empty, truncated,
    damaged or no video, a target that is no finite number, an unknown split, a name seen before.

    Raises:
        QrayError: no folder, no list, or no good clip at all. UsageError: a column that the study names is not there.
    """
    list_path, folder = root / data.file_list, root / data.videos
    listed = read_file_list(list_path, data)
    if not folder.is_dir():
        raise QrayError(f"{folder}: no such folder; the videos are expected there (another name: data.videos)")
    good, rejected = _judge(listed, _list_videos(folder), data)
    probes = _probe_all([row["path"] for row in good], folder, known or {}, workers)
    rows = []
    for row in good:
        facts = probes[row["path"]]
        if facts.error:
            rejected.append({"row": row["row"], "clip": row["clip"], "reason": facts.error})
        else:
            rows.append({**row, "path": str(row["path"].resolve()), "content": facts.digest,
                         "n_frames": facts.n_frames, "width": facts.width, "height": facts.height,
                         "fps": facts.fps})  # fmt: skip
    # Sorted by name: the order of the CSV's rows must not change what is trained or which key a unit has.
    clips = pd.DataFrame(rows, columns=["clip", "path", "target", "split", "n_frames", "width", "height", "fps",
                                        "content"]).sort_values("clip", ignore_index=True)  # fmt: skip
    rejections = pd.DataFrame(rejected, columns=["row", "clip", "reason"]).sort_values("row", ignore_index=True)
    if clips.empty:
        raise QrayError(f"{list_path}: none of its {len(listed)} rows is usable; {_first_reasons(rejections)}")
    return Manifest(clips, rejections, digest_of(clips), {_probe_key(p, folder): f for p, f in probes.items()})


def digest_of(clips: pd.DataFrame) -> str:
    """Hash of what results depend on: names, contents, targets and splits, not where the files lie."""
    facts = clips[["clip", "content", "target", "split"]].values.tolist()
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


def _first_reasons(rejected: pd.DataFrame, most: int = 5) -> str:
    rows = [f"line {row.row} {row.clip!r}: {row.reason}" for row in rejected.head(most).itertuples()]
    return "; ".join(rows) + (f"; and {len(rejected) - most} more" if len(rejected) > most else "")


def check_manifest(manifest: Manifest, data: Data) -> None:
    """Refuse a data set that a run cannot use.

    Raises:
        QrayError: more than `data.max_rejected` of the rows are bad, or a split has no clips.
    """
    bad, total = len(manifest.rejected), len(manifest.rejected) + len(manifest.clips)
    if bad > data.max_rejected * total:
        raise QrayError(
            f"{bad} of {total} rows of {data.file_list} are bad, more than data.max_rejected = {data.max_rejected:g} "
            f"allows: {_first_reasons(manifest.rejected)}. `qray data check` lists them all: mend them, or raise the "
            "limit with --set data.max_rejected=..."
        )
    for split in SPLITS:
        count = len(manifest.split(split))
        least = 2 if split == "TRAIN" else 1
        if count < least:
            raise QrayError(
                f"{data.file_list} has {count} usable clips in split {split}; TRAIN, VAL and TEST all need some. "
                f"Leave the split column out (data.split_column: null) to have qray draw the splits"
            )


def write_rejected(manifest: Manifest, path: Path) -> None:
    """Write the rejected rows as Parquet: row int64, clip string, reason string."""
    schema = pa.schema([("row", pa.int64()), ("clip", pa.string()), ("reason", pa.string())])
    write_parquet(path, pa.Table.from_pandas(manifest.rejected, schema=schema, preserve_index=False))
