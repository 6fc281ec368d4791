"""Whether a mix of precisions holds on VAL what the study asks for, and what is said of those that were tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qray.engines.parity import kernel_fault
from qray.errors import QrayError
from qray.judge.clips import pair
from qray.judge.comparison import compare
from qray.judge.guardrails import sentences
from qray.study import Study


def judge_mix(
    own: np.ndarray, reference: np.ndarray, notes: Mapping[str, Any], study: Study, within: float
) -> dict[str, Any]:
    """Predictions (CLIP) on VAL of a mix and of FP32: "delta_mae", "delta_low" and "delta_high" in target units,
    "holds", and "why" it does not (None where it does).

    It holds where the interval of the loss of MAE lies under `within`, no guardrail is broken, and its kernels compute
    what was simulated. notes: of its artifact.

    Raises:
        QrayError: VAL can carry no verdict.
    """
    clips = pair(own, reference)
    try:
        found = compare(clips["target"], clips["prediction"], clips["reference"], study.verdict)
    except ValueError as error:
        raise QrayError(f"VAL carries no verdict: {error}") from None
    if found.verdict is None or found.delta_high is None:
        raise QrayError(f"VAL carries no verdict: {'; '.join(found.notes)}")
    loss = f"MAE {found.delta:+.3g} (95 % to {found.delta_high:+.3g}), and {within:.3g} is put up with"
    over = loss if found.verdict_at(within) != "non-inferior" else None
    why = [over, sentences(found.broken), kernel_fault(notes, study.parity.max_kernel_share)]
    said = "; ".join(reason for reason in why if reason) or None
    return {
        "delta_mae": found.delta, "delta_low": found.delta_low, "delta_high": found.delta_high, "holds": said is None,
        "why": said,
    }  # fmt: skip
