"""Fake-quantization of activations is torch's to the last bit, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchao.quantization.pt2e import MinMaxObserver, MovingAverageMinMaxObserver
from torchao.quantization.pt2e.fake_quantize import FakeQuantize

from qray.engines.fake_quantize import FakeQuantizeActivation, fake_quantize


def halves_and_noise(seed: int, scale: float) -> torch.Tensor:
    """Activations on both sides of a range, many of them halfway between two codes. float32 (2, 3, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((2, 3, 8, 8), generator=generator) * 200 * scale
    halves = torch.randint(-600, 600, noise.shape, generator=generator) * (scale / 2)
    return torch.where(torch.rand(noise.shape, generator=generator) < 0.5, noise, halves)


@settings(deadline=None)
@given(
    st.integers(0, 2**16), st.floats(2**-12, 100, width=32), st.integers(0, 255),
    st.sampled_from([(0, 255), (-128, 127), (0, 127)]),
)  # fmt: skip
def test_values_and_gradients_are_those_of_torch(seed: int, scale: float, zero: int, limits: tuple[int, int]) -> None:
    zero = max(limits[0], min(zero, limits[1]))
    qparams = torch.tensor([scale]), torch.tensor([zero], dtype=torch.int32)
    found = []
    for function in (fake_quantize, torch.fake_quantize_per_tensor_affine):
        x = halves_and_noise(seed, scale).requires_grad_()
        y = function(x, *qparams, *limits)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)))
        found.append((y.detach(), x.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("observer", [MinMaxObserver, MovingAverageMinMaxObserver])
def test_a_module_observes_and_quantizes_as_torchao_has_it(observer: type) -> None:
    """In training, with its observer frozen, and with its state in another module."""
    arguments = {"observer": observer, "quant_min": 0, "quant_max": 255, "dtype": torch.uint8, "eps": 2**-12}
    ours, theirs = FakeQuantizeActivation(**arguments), FakeQuantize(**arguments)
    for step in range(6):
        if step == 3:
            ours.disable_observer()
            theirs.disable_observer()
        x = halves_and_noise(step, 0.01 * (step + 1))
        assert torch.equal(ours(x), theirs(x))
    other = FakeQuantizeActivation(**arguments)
    other.load_state_dict(theirs.state_dict())
    assert torch.equal(other(x), theirs(x))


def test_what_is_switched_off_does_nothing() -> None:
    module = FakeQuantizeActivation(MinMaxObserver, 0, 255, dtype=torch.uint8)
    module.disable_observer()
    module.disable_fake_quant()
    x = halves_and_noise(0, 1.0)
    assert module(x) is x
