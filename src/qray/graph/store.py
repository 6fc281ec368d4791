"""Finished units of work on disk, the only truth that a resumed run trusts. The driver is its only writer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

import qray
from qray.atomic import atomic_path, write_json, write_parquet
from qray.graph.unit import Unit
from qray.json_text import read_json
from qray.storage.mirror import Mirror

#: Folders and files of OUT; whatever else lies there is not ours.
CONTENTS = ("units", "artifacts", "predictions", "checkpoints", "sweep", "study.yaml", "results.parquet",
            "rejected.parquet", "run.json", "report.html", "report.md", "report", "cards", "kits",
            "measured")  # fmt: skip
#: Ray Tune's own storage is scheduler memory: it stays on the machine of the run.
COPIED = tuple(name for name in CONTENTS if name != "sweep")
#: What of OUT the table and the report are made of, and they themselves; run.json apart.
SHOWN = ("study.yaml", "*.parquet", "report.*", "report/*", "units/*-*.json", "units/phases.json", "predictions/*/*",
         "kits/*.json", "measured/*.json")  # fmt: skip


class Store:
    """The OUT folder.

    Attributes:
        out: its path. Layout: study.yaml, rejected.parquet, results.parquet, predictions/variant=KEY/SPLIT.parquet,
            artifacts/KEY/, checkpoints/KEY/, units/KIND-KEY.json, sweep/.
        mirror: what keeps a copy of it elsewhere, where some of its files may be that are not here.
    """

    def __init__(self, out: Path, mirror: Mirror | None = None) -> None:
        self.out, self.mirror = out, mirror

    def check(self) -> None:
        """Raises QrayError: what is finished cannot be sent to where OUT is."""
        if self.mirror is not None:
            self.mirror.check()

    def _bring(self, folder: str) -> None:
        """Have here what is elsewhere of a folder of OUT."""
        if self.mirror is not None:
            self.mirror.bring(lambda name: name.startswith(f"{folder}/"))

    def _has(self, name: str) -> bool:
        return (self.out / name).exists() or (self.mirror is not None and self.mirror.has(name))

    def unit_path(self, kind: str, key: str) -> Path:
        """Where a unit's record is; it exists once the unit is finished."""
        return self.out / "units" / f"{kind}-{key}.json"

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        """A finished unit's record, or None. An unreadable record counts as unfinished, and so does one without its
        files, or of an attempt in which something failed ("unfinished": what)."""
        try:
            record = read_json(self.unit_path(kind, key))
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(record, dict) or record.get("unfinished"):
            return None
        files = record.get("files", [])
        if not isinstance(files, list) or not all(map(self._holds, files)):
            return None
        return record

    def _holds(self, path: Any) -> bool:
        """Whether a file is there, inside OUT. Records may be another's, and what they name is read."""
        inside = isinstance(path, str) and (self.out / path).resolve().is_relative_to(self.out.resolve())
        return inside and self._has(path)

    def key(self, unit: Unit) -> str:
        """A unit's key, given what is finished."""
        return unit.key_given(self.finished)

    def record(self, unit: Unit) -> dict[str, Any] | None:
        """A finished unit's record, or None."""
        return self.get(unit.kind, self.key(unit))

    def finished(self, unit: Unit) -> bool:
        """Whether a unit's record and files are there."""
        return self.record(unit) is not None

    def put(self, kind: str, key: str, record: dict[str, Any]) -> None:
        """Record a unit as finished, or, with "unfinished" in the record, what came of an attempt. `record["files"]`
        (paths relative to OUT) must exist already."""
        write_json(self.unit_path(kind, key), record)
        if self.mirror is not None:
            self.mirror.call()

    def artifact_folder(self, key: str) -> Path:
        """Folder of the artifact that build unit `key` left."""
        return self.out / "artifacts" / key

    def artifact(self, key: str) -> Path:
        """The same, with its files here, wherever OUT is."""
        self._bring(f"artifacts/{key}")
        return self.artifact_folder(key)

    def save_artifact(self, key: str, files: Files) -> Path:
        """Write an artifact's files, all of them or none."""
        folder = self.artifact_folder(key)
        with atomic_path(folder) as temporary:
            unpack_folder(files, temporary)
        return folder

    def save_predictions(self, key: str, split: str, clips: pd.DataFrame, predicted: np.ndarray, seed: int) -> Path:
        """Write what the variant whose evaluation unit is `key` predicts, one row per clip: clip, split, target,
        prediction (NaN where the clip failed), seed."""
        path = self.out / "predictions" / f"variant={key}" / f"{split.lower()}.parquet"
        columns = {
            "clip": clips["clip"].tolist(), "split": [split] * len(clips),
            "target": clips["target"].to_numpy(np.float64), "prediction": np.asarray(predicted, np.float64),
            "seed": [seed] * len(clips),
        }  # fmt: skip
        write_parquet(path, pa.table(columns))
        return path

    def checkpoint_path(self, key: str, epoch: int) -> Path:
        """Checkpoint of a training unit after `epoch` (from 0)."""
        return self.out / "checkpoints" / key / f"epoch-{epoch:04d}.pt"

    def write_checkpoint(self, key: str, epoch: int, data: bytes | np.ndarray) -> Path:
        """Write an epoch's checkpoint beside those before it."""
        path = self.checkpoint_path(key, epoch)
        with atomic_path(path) as temporary:
            temporary.write_bytes(data if isinstance(data, bytes) else data.data)
        return path

    def forget_checkpoints(self, key: str, before: int) -> None:
        """Remove the checkpoints of the epochs before one."""
        newest = self.checkpoint_path(key, before)
        for old in newest.parent.glob("epoch-*.pt"):
            if old.name < newest.name:
                old.unlink()

    def save_checkpoint(self, key: str, epoch: int, data: bytes | np.ndarray) -> Path:
        """Write an epoch's checkpoint, then remove older ones: only the newest is ever needed."""
        path = self.write_checkpoint(key, epoch, data)
        self.forget_checkpoints(key, epoch)
        return path

    def bring_checkpoints(self, key: str) -> None:
        """Have the checkpoints of a training unit here, wherever OUT is."""
        self._bring(f"checkpoints/{key}")

    def latest_checkpoint(self, key: str) -> np.ndarray | None:
        """The newest checkpoint of a training unit, uint8 (bytes,), as it lies on disk; or None."""
        self.bring_checkpoints(key)
        found = sorted(path for path in (self.out / "checkpoints" / key).glob("epoch-*.pt") if path.is_file())
        return mapped(found[-1]) if found else None

    def _shown(self) -> str:
        """A hash of run.json, of `SHOWN`, and of the code."""
        index = read_json(self.out / "run.json")
        # A run that finds everything done changes no more than when it began.
        found = hashlib.blake2b(json.dumps(index | {"stage": "", "started": 0}).encode())
        made_of = [path for name in SHOWN for path in self.out.glob(name)]
        for path in sorted([*made_of, *Path(qray.__file__).parent.rglob("*")]):
            if path.is_file() and path.suffix != ".pyc":
                found.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
        return found.hexdigest()

    def set_shown(self) -> None:
        """Say that table and report are made of what OUT holds now."""
        write_json(self.out / "units" / "shown.json", {"shown": self._shown()})

    def is_shown(self) -> bool:
        """Whether this code would make the same table and report again."""
        try:
            return read_json(self.out / "units" / "shown.json") == {"shown": self._shown()}
        except (OSError, ValueError):
            return False

    def relative(self, path: Path) -> str:
        """A path inside OUT as records hold it."""
        return path.relative_to(self.out).as_posix()


def is_needed(name: str) -> bool:
    """Whether a run needs a file of OUT at its start: artifacts and checkpoints are brought when they are asked for."""
    top = name.partition("/")[0]
    return top != "checkpoints" and (top != "artifacts" or name.endswith("/artifact.json"))


def is_result(name: str) -> bool:
    """Whether it is of interest to others, which checkpoints are not."""
    return not name.startswith("checkpoints/")


def is_proof(name: str) -> bool:
    """Whether answers are made of it."""
    return is_needed(name) and not name.startswith(("report", "cards/"))


def is_figures(name: str) -> bool:
    """Whether it is the table, or what stands below it: no clip's own prediction."""
    return is_proof(name) and not name.startswith(("predictions/", "artifacts/", "kits/", "measured/"))


#: A folder's files by relative path, uint8 (bytes,): arrays, because Ray hands them on without a copy.
Files = Mapping[str, np.ndarray]


def pack_folder(folder: Path) -> Files:
    """A folder's files, to travel through the object store: workers need not share OUT."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): mapped(path) for path in found}


def mapped(path: Path) -> np.ndarray:
    """A file as it lies on disk, which takes no memory of its own until it is read."""
    if path.stat().st_size == 0:
        return np.empty(0, np.uint8)
    # Ray copies what is not an array by its very type.
    return np.memmap(path, np.uint8, "r").view(np.ndarray)


def unpack_folder(files: Files, folder: Path) -> None:
    """Write what `pack_folder` read.

    Raises:
        ValueError: a name leads out of the folder. Workers name files, but the driver answers for where it writes.
    """
    for name, data in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{name!r} leads out of the folder that it was to be unpacked into")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.data)
