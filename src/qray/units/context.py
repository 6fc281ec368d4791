"""What the tasks of one run share: the study, its clips in the object store, OUT, and where work is done."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from qray.data.manifest import Manifest
from qray.engines.artifact import read_artifact
from qray.errors import QrayError
from qray.graph.runner import Runner
from qray.graph.store import Files, Store, pack_folder
from qray.graph.unit import Unit
from qray.model.epoch import Checkpoint
from qray.study import Study
from qray.units.clips import NAMED_FAILURES, Job, SplitClips

if TYPE_CHECKING:
    from qray.graph.ray_backend import RayBackend


@dataclass
class RunContext:
    """One study on one data set into one OUT folder, inside a Ray session."""

    study: Study
    manifest: Manifest
    store: Store
    backend: RayBackend
    runner: Runner
    _named: set[str] = field(default_factory=set)
    _splits: dict[str, Future[Any]] = field(default_factory=dict)
    _artifacts: dict[str, Any] = field(default_factory=dict)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "qray-decode"))

    @property
    def job(self) -> Job:
        """What every task is given of it."""
        return Job(self.study, self.backend.slots.slot_cpus, self.backend.board)

    def prepare_split(self, name: str) -> None:
        """Begin to decode a split in the background, so that the first who asks for it need not wait."""
        if name not in self._splits:
            self._splits[name] = self._pool.submit(self._decode, name)

    def split(self, name: str) -> Any:
        """A split's clips (`SplitClips`) as an argument of tasks. VAL (one window, to choose by) and TEST (all windows)
        are decoded once and kept in the object store where they fit.

        Raises:
            QrayError: decoding took longer than any stream may be silent, twice over.
        """
        self.prepare_split(name)
        try:
            return self._splits[name].result(timeout=2 * self.study.evaluation.batch_timeout_s)
        except FutureTimeoutError:
            raise QrayError(f"decoding {name}: {self.backend.state()}; raise evaluation.batch_timeout_s") from None

    def _decode(self, name: str) -> Any:
        from qray.data.stream import cached

        clips = self.clips(self.manifest.split(name))
        if name == "TRAIN":
            return self.backend.share(clips)
        stream = self.job.split_plan(name)
        decoded = cached(clips.datasets(stream, name), len(clips.clips), stream)
        return self.backend.share(replace(clips, decoded=decoded))

    def clips(self, clips: pd.DataFrame) -> SplitClips:
        """Clips of the manifest in the form in which tasks take them."""
        from qray.data.stream import put_clips

        return SplitClips(clips[["clip", "target"]], put_clips(clips), self.study.data.max_rejected)

    def keep_artifact(self, key: str, files: Files) -> None:
        """Hold an artifact's files ready for the tasks that want them, outside the driver's own memory."""
        self._artifacts[key] = self.backend.share(files)

    def artifact(self, build: Unit) -> tuple[Any, tuple[str, ...]]:
        """The files of an artifact as an argument of tasks, and what they need of a CPU."""
        folder = self.store.artifact(build.key)
        if build.key not in self._artifacts:
            self.keep_artifact(build.key, pack_folder(folder))
        return self._artifacts[build.key], read_artifact(folder).built.needs

    def checkpoint(self, key: str) -> Checkpoint:
        """The newest checkpoint of a finished training.

        Raises:
            QrayError: somebody removed it.
        """
        data = self.store.latest_checkpoint(key)
        if data is None:
            raise QrayError(f"{self.store.out / 'checkpoints' / key}: no checkpoint; run again with --fresh")
        return data

    def best_trial(self, sweep: Unit, bits: int) -> dict[str, Any]:
        """The record of the QAT trial with the least VAL MAE of a weight width."""
        best: dict[str, Any] = (self.store.record(sweep) or {})["best"][str(bits)]
        return best

    def name_failed(self, what: str, failed: Mapping[str, str]) -> dict[str, Any]:
        """Name clips that passed the manifest and could not be decoded all the same (reasons by clip), each once; what
        a unit's record says of them. The task that met them has held them against the limit."""
        fresh = {clip: reason for clip, reason in failed.items() if clip not in self._named}
        self._named |= fresh.keys()
        for clip, reason in list(fresh.items())[:NAMED_FAILURES]:
            self.runner.say(f"clip {clip} left out of {what}: {reason}", "yellow")
        if len(fresh) > NAMED_FAILURES:
            self.runner.say(f"and {len(fresh) - NAMED_FAILURES} more clips left out of {what}", "yellow")
        return {"failed_clips": dict(failed)}
