"""What tasks are given: of the run, and of the clips; which are drawn, and the limit on those that cannot be decoded
though the manifest has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from qray.data.manifest import Manifest
from qray.errors import QrayError
from qray.study import ClipSpec, Study, Training

if TYPE_CHECKING:
    # A run that finds everything done needs no Ray.
    from qray.data.stream_plan import StreamPlan

#: Clips that failed to decode are named up to this number.
NAMED_FAILURES = 5


@dataclass(frozen=True)
class Job:
    """What every task is given of its run: the study, the CPUs in a slot, and the board where it says how far it is."""

    study: Study
    slot_cpus: float
    board: Any

    def eval_plan(self, spec: ClipSpec, batch_size: int | None = None) -> StreamPlan:
        """The stream of an evaluation, in its own batches unless others are given."""
        return self._plan(spec, "eval", batch_size or self.study.evaluation.batch_size)

    def split_plan(self, split: str) -> StreamPlan:
        """The stream of all clips of a split: of TEST all windows, of VAL, to choose by, one."""
        return self.eval_plan(self.study.clip if split == "TEST" else self.study.clip.single_window())

    def train_plan(self, training: Training, first_epoch: int, epochs: int, shards: int = 1) -> StreamPlan:
        """The stream of a training from one epoch on, up to so many, for so many workers."""
        more = {"seed": self.study.seed, "first_epoch": first_epoch, "epochs": epochs, "shards": shards}
        return self._plan(self.study.clip, "train", training.batch_size, **more)

    def _plan(self, spec: ClipSpec, mode: Literal["train", "eval"], batch_size: int, **more: int) -> StreamPlan:
        from qray.data.stream_plan import StreamPlan

        timeout_s = self.study.evaluation.batch_timeout_s
        return StreamPlan(spec, mode, batch_size, cpus_per_task=self.slot_cpus, timeout_s=timeout_s, **more)


@dataclass(frozen=True)
class SplitClips:
    """Clips of one split, all or some: their names and targets, what decode tasks need of them in the object store, and
    the share of them that may fail to decode (`data.max_rejected`)."""

    clips: pd.DataFrame
    ref: Any
    max_failed: float
    decoded: Any = None

    def datasets(self, plan: StreamPlan, name: str) -> Any:
        """The clips decoded: the copy kept in the object store if there is one, else a stream from the files, of which
        the dashboard knows by `name`."""
        from qray.data.stream import clip_datasets

        return self.decoded if self.decoded is not None else clip_datasets(self.ref, len(self.clips), plan, name)

    def check(self, what: str, failed: Mapping[int, str]) -> None:
        """Stop where too many of these clips failed: `failed` holds the reason by the clip's number, `what` says what
        they were decoded for.

        Raises:
            QrayError: more of them than may fail.
        """
        if len(failed) > self.max_failed * len(self.clips):
            named = [f"{clip}: {reason}" for clip, reason in named_failures(self.clips, failed).items()]
            more = f"; and {len(named) - NAMED_FAILURES} more" if len(named) > NAMED_FAILURES else ""
            raise QrayError(
                f"{len(failed)} of {len(self.clips)} clips for {what} could not be decoded, more than "
                f"data.max_rejected = {self.max_failed:g} allows: {'; '.join(named[:NAMED_FAILURES])}{more}"
            )


def named_failures(clips: pd.DataFrame, failed: Mapping[int, str]) -> dict[str, str]:
    """Reasons by the clips' names instead of their numbers, in the order of the clips."""
    return {str(clips["clip"].iloc[index]): failed[index] for index in sorted(failed)}


def calibration_clips(study: Study, manifest: Manifest, count: int | None = None) -> pd.DataFrame:
    """TRAIN clips that static quantization observes, drawn by the study's seed: `count`, or as many as the
    study says."""
    return covering(manifest.split("TRAIN"), count or study.calibration.clips, (study.seed, 1))


def parity_clips(study: Study, manifest: Manifest) -> pd.DataFrame:
    """VAL clips on which FP32, simulated and deployed predictions are compared, drawn by the study's seed."""
    return covering(manifest.split("VAL"), study.parity.clips, (study.seed, 3))


#: Parts of the target's range that clips are drawn from in turn.
TARGET_BINS = 16


def covering(clips: pd.DataFrame, count: int, seed: tuple[int, ...]) -> pd.DataFrame:
    """`count` clips over the whole range of the target, in the manifest's order: both extremes, and then one from each
    of `TARGET_BINS` bins of equal width in turn, so that rare targets are seen as long as there are any.

    Ranges from a uniform draw cut off what unusual clips do to a network.
    """
    if count >= len(clips):
        return clips.reset_index(drop=True)
    target = clips["target"].to_numpy(np.float64)
    order = np.random.default_rng(seed).permutation(len(clips))
    edges = np.linspace(target.min(), target.max(), TARGET_BINS + 1)[1:-1]
    bins = np.digitize(target[order], edges)
    # The rank of each clip within its bin: first all that come first there, then all that come second.
    turn = pd.Series(bins).groupby(bins).cumcount().to_numpy(copy=True)
    turn[np.isin(order, [target.argmin(), target.argmax()])] = -1
    chosen = order[np.argsort(turn, kind="stable")[:count]]
    return clips.iloc[np.sort(chosen)].reset_index(drop=True)
