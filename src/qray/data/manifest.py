"""FileList.csv and its videos -> the validated list of clips, and the rejected rows with reasons."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from qray.atomic import write_parquet
from qray.data.probe import Probe, probe
from qray.errors import QrayError, UsageError
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


def _read_csv(path: Path, data: Data) -> pd.DataFrame:
    if not path.parent.is_dir():
        raise QrayError(f"{path.parent}: no such folder; name the data set's folder with --data")
    if not path.is_file():
        raise QrayError(
            f"{path}: no such file; a data set needs this list of clips (another name: data.file_list in the study)"
        )
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False)
    except UnicodeDecodeError as error:
        raise QrayError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise QrayError(f"{path}: not a readable CSV: {error}") from None
    table.columns = pd.Index([str(column).strip() for column in table.columns])
    for key, column in (("file_column", data.file_column), ("target_column", data.target_column)):
        if column not in table.columns:
            raise UsageError(
                f"{path}: no column {column!r} (data.{key}); its columns are {', '.join(map(str, table.columns))}"
            )
    if table.empty:
        raise QrayError(f"{path}: no rows below the header")
    return table


def _locate(videos: Path, listing: Mapping[str, Path], name: str) -> tuple[Path | None, str]:
    """(path, "") of a row's video, or (None, reason)."""
    if not name:
        return None, "no file name"
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0] or "\0" in name:
        return None, f"the name leaves {videos.name}/"
    candidates = [pure] if pure.suffix.lower() in VIDEO_ENDINGS else []
    candidates += [pure.with_name(pure.name + ending) for ending in VIDEO_ENDINGS if not candidates]
    for candidate in [*candidates, pure]:
        found = listing.get(candidate.as_posix().lower())
        if found is not None:
            if not found.resolve().is_relative_to(videos.resolve()):
                return None, f"the name leaves {videos.name}/"
            return found, ""
    return None, f"file not found in {videos.name}/"


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
    return value if math.isfinite(value) else None


def _probe_key(path: Path, root: Path) -> str:
    stat = path.stat()
    return f"{path.relative_to(root).as_posix()}|{stat.st_size}|{stat.st_mtime_ns}"


def _probe_all(paths: list[Path], root: Path, known: Mapping[str, Probe], workers: int | None) -> dict[Path, Probe]:
    keys = {path: _probe_key(path, root) for path in paths}
    probes = {path: known[key] for path, key in keys.items() if key in known}
    fresh = [path for path in paths if path not in probes]
    # FFmpeg and the hash both release the interpreter's lock, so threads are enough.
    with ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1)) as pool:
        results = pool.map(probe, fresh)
        if len(fresh) < PROGRESS_FROM:
            return probes | dict(zip(fresh, results, strict=True))
        with progress("Checking videos", len(fresh), "files") as advance:
            for path, result in zip(fresh, results, strict=True):
                probes[path] = result
                advance(1)
    return probes


def read_manifest(
    root: Path, data: Data, known: Mapping[str, Probe] | None = None, workers: int | None = None
) -> Manifest:
    """Read and check a data set.

    Bad rows are rejected one by one: no file, a name outside the video folder, a file that is empty, truncated or no
    video, a target that is no finite number, an unknown split, a name seen before.

    Raises:
        QrayError: no folder, no list, or no good clip at all. UsageError: a column that the study names is not there.
    """
    list_path, videos = root / data.file_list, root / data.videos
    table = _read_csv(list_path, data)
    if not videos.is_dir():
        raise QrayError(f"{videos}: no such folder; the videos are expected there (another name: data.videos)")
    listing = {
        (Path(folder) / name).relative_to(videos).as_posix().lower(): Path(folder) / name
        for folder, _, names in os.walk(videos)
        for name in names
    }
    has_split = data.split_column is not None and data.split_column in table.columns
    good: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    seen: set[str] = set()
    for line, record in enumerate(table.to_dict("records"), start=2):
        name = str(record[data.file_column]).strip()
        if not any(str(value).strip() for value in record.values()):
            continue  # a blank line
        path, reason = _locate(videos, listing, name)
        pure = PurePosixPath(name)
        clip = str(pure.with_suffix("")) if pure.suffix.lower() in VIDEO_ENDINGS else name
        target = _target(str(record[data.target_column]).strip())
        word = str(record[data.split_column]).strip() if has_split else ""
        split = SPLIT_WORDS.get(word.upper()) if word else _split_by_name(clip, data)
        if clip.lower() in seen:
            reason = "the name was seen in an earlier row"
        elif not reason and target is None:
            reason = f"{data.target_column} is {record[data.target_column]!r}, not a finite number"
        elif not reason and split is None:
            reason = f"{data.split_column} is {word!r}, expected TRAIN, VAL or TEST"
        if name:
            seen.add(clip.lower())
        if reason or path is None:
            rejected.append({"row": line, "clip": name, "reason": reason})
        else:
            good.append({"row": line, "clip": clip, "path": path, "target": target, "split": split})
    probes = _probe_all([row["path"] for row in good], root, known or {}, workers)
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
        raise QrayError(f"{list_path}: none of its {len(table)} rows is usable; {_first_reasons(rejections)}")
    return Manifest(clips, rejections, digest_of(clips), {_probe_key(p, root): f for p, f in probes.items()})


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
            f"allows: {_first_reasons(manifest.rejected)}. Mend them, or raise the limit with --set data.max_rejected"
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
