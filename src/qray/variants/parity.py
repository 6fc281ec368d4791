"""Simulated against deployed predictions, clip by clip: what an engine's kernels add to quantization itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qray.errors import QrayError
from qray.variants.artifact import Predict

if TYPE_CHECKING:
    # An artifact loads without PyTorch where its engine needs none.
    import torch

#: Clips that both models predict: enough for a scatter, little beside the calibration itself.
PARITY_CLIPS = 64


def parity_notes(simulated: Predict, deployed: Predict, batches: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Notes of an artifact: "parity", both models' predictions of the first `PARITY_CLIPS` clips in target units and in
    the clips' order, and "parity_max_abs", their largest difference.

    Raises:
        QrayError: a prediction is not finite.
    """
    pairs: list[tuple[float, float]] = []
    for batch in batches:
        clips = batch[: PARITY_CLIPS - len(pairs)].numpy()
        if not len(clips):
            break
        both = np.stack([np.asarray(simulated(clips), np.float64), np.asarray(deployed(clips), np.float64)], 1)
        pairs += [(float(one), float(other)) for one, other in both]
    values = np.array(pairs)
    for name, column in zip(("simulated", "deployed"), values.T, strict=True):
        if not np.isfinite(column).all():
            bad = int((~np.isfinite(column)).sum())
            raise QrayError(f"the {name} model predicts NaN or infinity for {bad} of {len(column)} calibration clips")
    return {
        "parity_max_abs": float(np.abs(values[:, 0] - values[:, 1]).max()),
        "parity": {"simulated": values[:, 0].tolist(), "deployed": values[:, 1].tolist()},
    }
