"""Clips as tasks are given them, and the limit on those that cannot be decoded though the manifest took them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from qray.data.stream import StreamPlan, clip_dataset
from qray.errors import QrayError

#: Clips that failed to decode are named up to this number.
NAMED_FAILURES = 5


@dataclass(frozen=True)
class SplitClips:
    """Clips of one split, all or some: their manifest rows, what decode tasks need of them in the object store, and the
    share of them that may fail to decode (`data.max_rejected`)."""

    clips: pd.DataFrame
    ref: Any
    max_failed: float
    decoded: Any = None

    def dataset(self, plan: StreamPlan) -> Any:
        """The clips decoded: the copy kept in the object store if there is one, else a stream from the files."""
        return self.decoded if self.decoded is not None else clip_dataset(self.ref, len(self.clips), plan)

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
