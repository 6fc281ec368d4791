"""Ranges of activations from what passes by, the same on every engine: torchao's observers, and what it has none for.

Values are kept as extremes or in a histogram of 2048 bins, whatever the number of clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver

#: Share of the values that lie within a range by percentile, as many of the others below it as above.
PERCENTILE = 0.9999
#: What ONNX Runtime's variants by `histogram` keep.
WIDE_PERCENTILE = 0.99999
#: Codes that activations have.
LEVELS = 256


class _Widened:
    """`margin`: factor by which a range is widened, on both sides of zero."""

    def __init__(self, margin: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.margin = margin

    def _calculate_qparams(self, low: Tensor, high: Tensor) -> Any:
        return super()._calculate_qparams(low * self.margin, high * self.margin)  # type: ignore[misc]


class MinMax(_Widened, MinMaxObserver):
    """Extremes of all values."""

    def bounds(self) -> tuple[float, float]:
        """The range, with 0 in it."""
        return _with_zero(self.min_val, self.max_val, self.margin)


class MeanSquare(_Widened, HistogramObserver):
    """The range of the least mean square error, by torchao's search."""

    def _non_linear_param_search(self) -> tuple[Tensor, Tensor]:
        if self.min_val == self.max_val:
            return self.min_val, self.max_val
        return self._search()

    def _search(self) -> tuple[Tensor, Tensor]:
        low, high = super()._non_linear_param_search()
        return low, high

    def bounds(self) -> tuple[float, float]:
        """The range, with 0 in it."""
        return _with_zero(*self._non_linear_param_search(), self.margin)

    def _between(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """From the lower edge of one bin to the upper edge of another."""
        width = (self.max_val - self.min_val) / self.bins
        return self.min_val + width * first, self.min_val + width * (last + 1)


class Percentile(MeanSquare):
    """The range that holds a share of all values."""

    def __init__(self, share: float = PERCENTILE, **settings: Any) -> None:
        super().__init__(**settings)
        self.share = share

    def _search(self) -> tuple[Tensor, Tensor]:
        below = self.histogram.double().cumsum(0) / self.histogram.double().sum()
        tails = torch.tensor([(1 - self.share) / 2, (1 + self.share) / 2], dtype=torch.float64)
        first, last = torch.searchsorted(below, tails).tolist()
        return self._between(first, min(last, self.bins - 1))


class Entropy(MeanSquare):
    """The range whose codes tell most of what the values are: of all ranges that are the whole one times a factor, that
    of the least divergence of Kullback and Leibler between the values cut off at its ends and their 256 codes.

    Migacz, 8-bit inference with TensorRT, GTC 2017; there for magnitudes.
    """

    def _search(self) -> tuple[Tensor, Tensor]:
        counts, candidates = self.histogram.double(), []
        edges = self.min_val + (self.max_val - self.min_val) / self.bins * torch.arange(self.bins)
        for factor in torch.linspace(LEVELS / self.bins, 1, 128):
            inside = torch.nonzero((edges >= self.min_val * factor) & (edges <= self.max_val * factor)).ravel()
            if len(inside):
                first, last = int(inside[0]), int(inside[-1])
                candidates.append((_divergence(counts, first, last), -(last - first), first, last))
        _, _, first, last = min(candidates)
        return self._between(first, last)


def _divergence(counts: Tensor, first: int, last: int) -> float:
    """Of counts (bins,) cut off outside of bins `first` to `last`, from what their codes say of them."""
    within = counts[first : last + 1]
    cut = within.clone()
    cut[0] += counts[:first].sum()
    cut[-1] += counts[last + 1 :].sum()
    code = torch.arange(len(within)) * LEVELS // len(within)
    sums = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, code, within)
    filled = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, code, (within > 0).double())
    told = torch.where(within > 0, (sums / filled.clamp(min=1))[code], 0.0)
    p, q = cut / cut.sum(), told / told.sum()
    seen = p > 0
    # What was cut off may fall where nothing else is: a probability of 0 would make that infinitely bad.
    return float((p[seen] * (p[seen] / q[seen].clamp(min=1e-12)).log()).sum())


def _with_zero(low: Tensor, high: Tensor, margin: float) -> tuple[float, float]:
    return min(float(low) * margin, 0.0), max(float(high) * margin, 0.0)


#: What a variant's `observer` names, "histogram" apart, which is each engine's own.
OBSERVERS: dict[str, type[MinMax] | type[MeanSquare]] = {
    "minmax": MinMax, "percentile": Percentile, "entropy": Entropy, "mse": MeanSquare,
}  # fmt: skip


def observers(kind: str, margin: float, names: Sequence[str], **more: Any) -> dict[str, MinMax | MeanSquare]:
    """One observer of uint8 codes for each activation."""
    settings: dict[str, Any] = {"dtype": torch.uint8, "quant_min": 0, "quant_max": LEVELS - 1, "margin": margin}
    return {name: OBSERVERS[kind](**settings, **more) for name in names}
