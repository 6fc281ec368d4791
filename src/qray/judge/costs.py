"""What one clip costs, from the record of the measurement: each part with an interval, and what no engine speeds up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qray.judge.ratio import over_rounds
from qray.judge.statistics import Estimate
from qray.measure.costs import PARTS

#: The parts of a clip's way that are not the network's.
OUTSIDE = ("decode", "preprocessing")


@dataclass(frozen=True)
class Costs:
    """Milliseconds per clip (one window of `frames` frames) by part, FP32 eager, means over the rounds; outside: share
    (0 to 1) of decode and preprocessing in the sum, which is what remains however fast the network becomes."""

    parts: Mapping[str, Estimate]
    outside: Estimate
    frames: int
    image_size: int
    threads: int

    @property
    def limit(self) -> float:
        """The speed-up of the whole way if the network took no time at all.

        Amdahl, Validity of the single processor approach to achieving large scale computing capabilities, AFIPS 1967.
        """
        return 1 / self.outside.value


def costs_of(record: Mapping[str, Any]) -> Costs | None:
    """What the record of a unit of kind `costs` says; None where it is not one, or not whole."""
    blocks = record.get("blocks_ms")
    if not isinstance(blocks, Mapping) or any(not blocks.get(part) for part in PARTS):
        return None
    if not {"frames", "image_size", "threads"} <= record.keys():
        return None
    if len({len(blocks[part]) for part in PARTS}) > 1 or not all(map(len, (b for p in PARTS for b in blocks[p]))):
        return None
    medians = {part: np.array([np.median(block) for block in blocks[part]]) for part in PARTS}
    if not all(np.isfinite(values).all() and (values > 0).all() for values in medians.values()):
        return None
    total = sum(medians.values(), np.zeros(1))
    outside = sum((medians[part] for part in OUTSIDE), np.zeros(1)) / total
    return Costs(
        {part: over_rounds(values) for part, values in medians.items()}, over_rounds(outside),
        record["frames"], record["image_size"], record["threads"],
    )  # fmt: skip
