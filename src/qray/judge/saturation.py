"""Whether predictions pile up at their ends or on few values, where those of FP32 go on."""

from __future__ import annotations

import numpy as np

#: Two predictions are one if they differ by less than this share of what FP32's predictions span (0.00007 EF points).
SAME = 1e-6
#: FP32 goes on where its predictions of clips that are tied differ by more than this share of their span.
GOES_ON = 1e-4
#: Significant bits of the formats that a prediction may have been rounded to: bfloat16 and float16.
NARROW_BITS = (8, 11)
#: Below this probability so many ties at an end are not the work of rounding: at 0.005 it refused 1 % of simulated
#: honest variants in bfloat16, at 0.001 none of 400.
TIE_ALPHA = 0.001
TIE_REPLICATES = 2000


def ties_at_the_bottom(predicted: np.ndarray, reference: np.ndarray, span: float) -> int:
    """How many clips that FP32 tells apart share the lowest prediction; 1 where none do."""
    own = np.sort(reference[predicted <= predicted.min() + SAME * span])
    return 1 + int((np.diff(own) > GOES_ON * span).sum())


def distinct(values: np.ndarray, span: float) -> int:
    """How many different predictions there are."""
    return len(np.unique(np.round((values - values.min()) / (SAME * span))))


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Values to so many significant bits, ties to even."""
    fraction, exponent = np.frexp(values)
    result: np.ndarray = np.ldexp(np.round(np.ldexp(fraction, bits)), exponent - bits)
    return result


def narrow_bits(predicted: np.ndarray) -> int | None:
    """Significant bits of the narrowest format that holds all predictions; None for float32."""
    return next((bits for bits in NARROW_BITS if np.array_equal(rounded(predicted, bits), predicted)), None)


def explained_by_rounding(
    predicted: np.ndarray, reference: np.ndarray, span: float, bits: int, tied: int, seed: int
) -> bool:  # fmt: skip
    """Whether FP32's predictions, moved as these are and rounded, have as many ties at their lowest often enough."""
    inner = predicted > predicted.min() + SAME * span
    if not inner.any():
        return False
    moves, rng = (predicted - reference)[inner], np.random.default_rng(seed)
    hits = 0
    for _ in range(TIE_REPLICATES):
        drawn = rounded(reference + rng.choice(moves, len(reference)), bits)
        hits += ties_at_the_bottom(drawn, reference, span) >= tied
    return hits >= TIE_ALPHA * TIE_REPLICATES
