"""FileList.csv and its videos -> the validated list of clips, and the rejected rows with reasons."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from qray.atomic import write_parquet
from qray.data.file_list import Row, read_file_list
from qray.data.probe import PROBE_VERSION, Probe
from qray.data.probing import probe_files
from qray.data.splits import SPLITS, Side, assign, is_split
from qray.data.video_folder import VideoFolder, fold, videos_in, without_ending
from qray.errors import QrayError
from qray.measure.host import usable_cpus
from qray.progress import progress
from qray.storage.place import Place
from qray.study import Data
from qray.yaml_text import short

#: More files than this take more than two seconds to read, so progress is shown.
PROGRESS_FROM = 400
#: Characters of the name of a rejected row that are kept; no file system has names of more.
LONGEST_NAME = 255
LARGEST_TARGET = float(np.finfo(np.float32).max)
COLUMNS = ("clip", "path", "target", "split", "n_frames", "width", "height", "fps", "content")
#: So many at a time are written out as text, which takes many times the memory of the rows.
DIGEST_ROWS = 10_000


@dataclass(frozen=True)
class Manifest:
    """The clips of a data set.

    clips: clip (str), path (str; absolute, or a URI of `storage.cache.located`), target (float64), split, n_frames,
    width, height (int64), fps (float64); rejected: row (line in the CSV, the header is 1), clip, reason. digest: a hash
    of names, contents, targets and splits, the same wherever the data set lies. probes: what reading the files told, to
    be kept for the next time.
    warnings: what is no reason to leave a clip out, and should be known, a sentence each.
    """

    clips: pd.DataFrame
    rejected: pd.DataFrame
    digest: str
    probes: dict[str, Probe]
    warnings: tuple[str, ...] = ()

    def split(self, name: str) -> pd.DataFrame:
        """The clips of one split, numbered from 0."""
        return self.clips[self.clips["split"] == name].reset_index(drop=True)


def _target(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    # Training is in float32, where larger numbers are infinite; Python alone reads 1_0 as ten.
    return value if abs(value) <= LARGEST_TARGET and "_" not in text else None


def _probe_key(stamp: str) -> str:
    return stamp if stamp.endswith("|gone") else f"{stamp}|{PROBE_VERSION}"


def _probe_all(
    names: list[str], videos: VideoFolder, known: Mapping[str, Probe], workers: int | None
) -> dict[str, Probe]:
    """What each file told, in the order of the names; the keys are names that change when the files do."""
    keys = [_probe_key(videos.stamp(name)) for name in names]
    # Two links to a file are read as one.
    fresh = list(dict.fromkeys(videos.where(name) for name, key in zip(names, keys, strict=True) if key not in known))
    judged = probe_files(fresh, workers or min(16, usable_cpus()))
    if len(fresh) < PROGRESS_FROM:
        found = dict(judged)
    else:
        found = {}
        with progress("Checking videos", len(fresh), "files") as advance:
            for where, facts in judged:
                found[where] = facts
                advance(1)
    return {
        key: known[key] if key in known else found[videos.where(name)] for name, key in zip(names, keys, strict=True)
    }


@dataclass(frozen=True, slots=True)
class _Good:
    """A row that is usable as far as the list and the folder tell; found: its file's name in the folder."""

    row: Row
    name: str
    found: str
    target: float


def _judge(rows: list[Row], videos: VideoFolder, data: Data) -> tuple[list[_Good], list[dict[str, Any]]]:
    """(good, rejected) as far as the list and the folder tell.

    A name counts as seen even if its first row was bad: which of two rows is right is the user's to say.
    """
    good: list[_Good] = []
    rejected: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for row in rows:
        name = row.file.replace("\\", "/")
        name = videos.relative(name) or name if name else ""
        found, reason = videos.find(name)
        target = _target(row.target)
        # One file is one name, however it is written; two files are two, though their names be alike.
        identity = found or f"?{fold(without_ending(name))}"
        if row.problem:
            reason = row.problem
        elif name and identity in seen:
            reason = f"the name was seen before, in line {seen[identity]}"
        elif not reason and target is None:
            reason = f"{data.target_column} is {short(row.target)!r}, not a finite number{_comma(row.target)}"
        elif not reason and not is_split(row.split):
            reason = f"{_split_cell(data)}{short(row.split)!r}, expected TRAIN, VAL or TEST"
        if name:
            seen.setdefault(identity, row.line)
        if reason or found is None or target is None:
            rejected.append(_rejection(row, reason))
        else:
            good.append(_Good(row, name, found, target))
    return good, rejected


def _rejection(row: Row, reason: str) -> dict[str, Any]:
    return {"row": row.line, "clip": short(row.file, LONGEST_NAME), "reason": reason}


def _split_cell(data: Data) -> str:
    return f"{data.split_column} is "


def _comma(target: str) -> str:
    mended = target.replace(",", ".")
    return f"; write {short(mended)}, with a point" if target.count(",") == 1 and _target(mended) is not None else ""


def _clip_names(good: Sequence[_Good]) -> list[str]:
    """What each clip is called: its name in the list without the ending, which only files that share the rest keep."""
    names = [without_ending(row.name) for row in good]
    while True:
        count = Counter(names)
        longer = [row.found if count[name] > 1 else name for row, name in zip(good, names, strict=True)]
        if longer == names:
            return names
        names = longer


def clip_paths(root: Path | Place, data: Data) -> dict[str, str]:
    """Where the file of each clip lies, by its name, as far as the list and the folder tell; no video is read.

    Raises:
        QrayError, UsageError: as `read_manifest`.
    """
    videos = videos_in(root / data.videos, data.follow_links)
    good, _ = _judge(read_file_list(root / data.file_list, data), videos, data)
    return {name: videos.where(row.found) for name, row in zip(_clip_names(good), good, strict=True)}


def _same_content(clips: pd.DataFrame) -> Iterator[str]:
    """Files with the same bytes under several names: in two splits, what is trained on is tested on."""
    for _, same in clips[clips.duplicated("content", keep=False)].groupby("content"):
        listed = ", ".join(f"{row.clip} ({row.split})" for row in same.head(4).itertuples())
        more = f" and {len(same) - 4} more" if len(same) > 4 else ""
        leak = "; they are in several splits, so that a clip is judged by what trained it" * (
            same["split"].nunique() > 1
        )
        yield f"{listed}{more} have the same content{leak}"


def read_manifest(
    root: Path | Place, data: Data, known: Mapping[str, Probe] | None = None, workers: int | None = None
) -> Manifest:
    """Read and check a data set.

    Bad rows are rejected one by one: no file, a name outside the video folder, a file that is empty, truncated,
    damaged or no video, a target that is no finite number, an unknown split, a name seen before, a group on two sides.

    Raises:
        QrayError: no folder, no list, or no good clip at all. UsageError: a column that the study names is not there.
    """
    list_path, folder = root / data.file_list, root / data.videos
    listed = read_file_list(list_path, data)
    videos = videos_in(folder, data.follow_links)
    if not videos.is_there():
        raise QrayError(f"{folder}: no such folder; the videos are expected there (another name: data.videos)")
    good, rejected = _judge(listed, videos, data)
    sides = assign([Side(g.row.line, without_ending(g.name), g.row.split, g.row.group) for g in good], data)
    probes = _probe_all([row.found for row in good], videos, known or {}, workers)
    # By columns: a dictionary a row would take more memory than all else of a long list.
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for one, clip, (split, reason), facts in zip(good, _clip_names(good), sides, probes.values(), strict=True):
        if reason or facts.error:
            rejected.append(_rejection(one.row, reason or str(facts.error)))
        else:
            cells = (clip, videos.where(one.found), one.target, split, facts.n_frames, facts.width,
                     facts.height, facts.fps, facts.digest)  # fmt: skip
            for column, cell in zip(columns.values(), cells, strict=True):
                column.append(cell)
    # Sorted by name: the order of the CSV's rows must not change what is trained or which key a unit has.
    clips = pd.DataFrame(columns).sort_values("clip", ignore_index=True)
    rejections = pd.DataFrame(rejected, columns=["row", "clip", "reason"]).sort_values("row", ignore_index=True)
    if clips.empty:
        why = _first_reasons(rejections) + _advice(rejections, data)
        raise QrayError(f"{list_path}: none of its {len(listed)} rows is usable; {why}")
    return Manifest(clips, rejections, digest_of(clips), probes, tuple(_same_content(clips)))


def digest_of(clips: pd.DataFrame) -> str:
    """Hash of what results depend on: names, contents and how they are read, targets, splits; not where files lie."""
    found = hashlib.blake2b(f"[{PROBE_VERSION}, [".encode(), digest_size=8)
    for at in range(0, len(clips), DIGEST_ROWS):
        facts = clips[["clip", "content", "target", "split"]].iloc[at : at + DIGEST_ROWS].values.tolist()
        found.update((", " * (at > 0) + json.dumps(facts)[1:-1]).encode())
    found.update(b"]]")
    return found.hexdigest()


def _first_reasons(rejected: pd.DataFrame, most: int = 5) -> str:
    rows = [f"line {row.row} {row.clip!r}: {row.reason}" for row in rejected.head(most).itertuples()]
    return "; ".join(rows) + (f"; and {len(rejected) - most} more" if len(rejected) > most else "")


def _advice(rejected: pd.DataFrame, data: Data) -> str:
    """What solves many rejections at once."""
    if data.split_column and rejected["reason"].str.startswith(_split_cell(data)).any():
        return f". Where {data.split_column} holds other words, such as folds, data.split_column: null draws the splits"
    return ""


def check_manifest(manifest: Manifest, data: Data) -> None:
    """Refuse a data set that a run cannot use.

    Raises:
        QrayError: more than `data.max_rejected` of the rows are bad, or a split has no clips.
    """
    bad, total = len(manifest.rejected), len(manifest.rejected) + len(manifest.clips)
    if bad > data.max_rejected * total:
        raise QrayError(
            f"{bad} of {total} rows of {data.file_list} are bad, more than data.max_rejected = {data.max_rejected:g} "
            f"allows: {_first_reasons(manifest.rejected)}{_advice(manifest.rejected, data)}. `qray data check` lists "
            "them all: mend them, or raise the limit with --set data.max_rejected=..."
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
