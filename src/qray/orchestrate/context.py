"""What the steps of one run share: study, plan, store, slots of the cluster, clips in the object store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qray.data.stream import StreamPlan, cached, clip_dataset, put_clips
from qray.errors import QrayError
from qray.orchestrate.plan import Plan
from qray.orchestrate.session import Slots
from qray.orchestrate.steps import Runner
from qray.orchestrate.store import Store
from qray.orchestrate.work import EvaluateJob, SplitClips
from qray.study import ClipSpec, Study

#: Clips that failed to decode are named up to this number.
NAMED_FAILURES = 5


@dataclass
class RunContext:
    """One study on one data set into one OUT folder, inside a Ray session."""

    study: Study
    store: Store
    plan: Plan
    runner: Runner
    slots: Slots
    _splits: dict[str, SplitClips] = field(default_factory=dict)

    @property
    def timeout_s(self) -> float:
        """Longest silence of a stream, in seconds."""
        return self.study.evaluation.batch_timeout_s

    def eval_plan(self, spec: ClipSpec) -> StreamPlan:
        """The stream of an evaluation."""
        return StreamPlan(
            spec, "eval", self.study.evaluation.batch_size, cpus_per_task=self.slots.slot_cpus,
            timeout_s=self.timeout_s,
        )  # fmt: skip

    def evaluate_job(self, name: str, spec: ClipSpec) -> EvaluateJob:
        """An evaluation under the given name."""
        return EvaluateJob(name, self.eval_plan(spec))

    def split(self, name: str) -> SplitClips:
        """A split's clips. VAL (one window, to choose by) and TEST (all windows) are decoded once and kept in the
        object store where they fit."""
        if name not in self._splits:
            clips = self.plan.manifest.split(name)
            ref = put_clips(clips)
            decoded = None
            if name != "TRAIN":
                stream = self.eval_plan(self.study.clip if name == "TEST" else self.study.clip.single_window())
                decoded = cached(clip_dataset(ref, len(clips), stream), len(clips), stream)
            self._splits[name] = SplitClips(clips, ref, decoded)
        return self._splits[name]

    def checkpoint(self, key: str) -> bytes:
        """The newest checkpoint of a finished training.

        Raises:
            QrayError: somebody removed it.
        """
        data = self.store.latest_checkpoint(key)
        if data is None:
            raise QrayError(f"{self.store.out / 'checkpoints' / key}: no checkpoint; run again with --fresh")
        return data

    def best_trial(self, bits: int) -> dict[str, Any]:
        """The record of the QAT trial with the least VAL MAE of a weight width."""
        best: dict[str, Any] = self.runner.record(self.plan.sweep)["best"][str(bits)]
        return best

    def check_failed(self, split: str, failed: dict[int, str]) -> None:
        """Name clips that passed the manifest and could not be decoded all the same.

        Raises:
            QrayError: more of them than `data.max_rejected` allows.
        """
        clips, limit = self.plan.manifest.split(split), self.study.data.max_rejected
        for index, reason in list(failed.items())[:NAMED_FAILURES]:
            self.runner.say(f"clip {clips['clip'].iloc[index]} left out: {reason}", "yellow")
        if len(failed) > limit * len(clips):
            first = next(iter(failed.values()))
            raise QrayError(
                f"{len(failed)} of {len(clips)} {split} clips could not be decoded, more than data.max_rejected = "
                f"{limit:g} allows; the first: {first}"
            )
