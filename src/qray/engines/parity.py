"""FP32, simulated and deployed predictions of the same VAL clips: what quantization costs, and what an engine's kernels
add to it; and the activations outside the ranges that calibration found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qray.engines.artifact import Predict
from qray.errors import QrayError

if TYPE_CHECKING:
    # An artifact loads without PyTorch where its engine needs none.
    import torch

#: Activations that are named, those with the largest share of values outside their range.
NAMED_ACTIVATIONS = 5


#: Of a range: a number, or one for each channel.
Bound = float | np.ndarray


@dataclass
class Outside:
    """Values of quantized activations that lie outside the ranges of their quantizers, by activation."""

    outside: dict[str, int] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)

    def see(self, name: str, values: np.ndarray, low: Bound, high: Bound, step: Bound) -> None:
        """Count values beyond [low, high], which may be arrays that broadcast. Up to half a step further the error is
        no larger than that of rounding."""
        gone = int(np.count_nonzero((values < low - step / 2) | (values > high + step / 2)))
        self.outside[name] = self.outside.get(name, 0) + gone
        self.values[name] = self.values.get(name, 0) + values.size

    def notes(self) -> dict[str, Any]:
        """ "outside_share": of all values seen; "outside": the share by activation, the worst `NAMED_ACTIVATIONS`."""
        shares = {name: gone / self.values[name] for name, gone in self.outside.items() if gone}
        worst = sorted(shares.items(), key=lambda item: -item[1])[:NAMED_ACTIVATIONS]
        total = sum(self.values.values())
        return {"outside_share": sum(self.outside.values()) / total if total else None, "outside": dict(worst)}


@dataclass(frozen=True)
class Simulated:
    """A quantized model computed in float: its predictions, and what it saw outside of its ranges."""

    predict: Predict
    outside: Outside


def parity_notes(
    fp32: Predict, simulated: Simulated, deployed: Predict, validation: Sequence[torch.Tensor]
) -> dict[str, Any]:
    """Notes of an artifact, from uint8 (b, T, H, W, 3) batches of VAL clips; predictions are in target units.

    "parity": the three models' predictions in the clips' order. "kernel_rms" and "quantization_rms": root mean squares
    of deployed - simulated and of simulated - FP32; "parity_max_abs": the largest of the former. "outside_share" and
    "outside": see `Outside.notes`. Without clips, nothing.

    Raises:
        QrayError: a prediction is not finite.
    """
    if not validation:
        return {}
    models = {"fp32": fp32, "simulated": simulated.predict, "deployed": deployed}
    found = {name: _all(predict, validation) for name, predict in models.items()}
    for name, values in found.items():
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise QrayError(f"the {name} model predicts NaN or infinity for {bad} of {len(values)} VAL clips")
    kernels, cost = found["deployed"] - found["simulated"], found["simulated"] - found["fp32"]
    return {
        "parity": {name: values.tolist() for name, values in found.items()},
        "parity_max_abs": float(np.abs(kernels).max()), "kernel_rms": _rms(kernels), "quantization_rms": _rms(cost),
        **simulated.outside.notes(),
    }  # fmt: skip


def _all(predict: Predict, batches: Sequence[torch.Tensor]) -> np.ndarray:
    return np.concatenate([np.asarray(predict(batch.numpy()), np.float64) for batch in batches])


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))


def one_by_one(clips: np.ndarray) -> Iterator[np.ndarray]:
    """Single clips: a model that shows all its activations holds them all at once."""
    return (clip[None] for clip in clips)


def kernel_share(notes: Mapping[str, Any]) -> float | None:
    """Error of the kernels as a share of quantization's, both RMS; None where there was nothing to compare."""
    kernels, cost = notes.get("kernel_rms"), notes.get("quantization_rms")
    if kernels is None or cost is None:
        return None
    return 0.0 if kernels == 0 else kernels / cost if cost > 0 else math.inf


def kernel_fault(notes: Mapping[str, Any], limit: float) -> str | None:
    """Why the artifact of these notes is not what was simulated, or None: the gate `parity.max_kernel_share`."""
    share = kernel_share(notes)
    if share is None or share <= limit:
        return None
    return (
        f"the engine's kernels move predictions by {notes['kernel_rms']:.3g} (RMS over "
        f"{len(notes['parity']['deployed'])} VAL clips, at most {notes['parity_max_abs']:.3g}), {share:.2g} of the "
        f"{notes['quantization_rms']:.3g} that quantization itself costs, more than parity.max_kernel_share = "
        f"{limit:g} allows: what is deployed is not what was simulated"
    )
