"""QAT trains on a CUDA device, and what it leaves is built on the CPU: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.networks import realistic_model, smooth_clips, toy_batches
from torch.utils._pytree import tree_map_only

from qray.engines import pt2e
from qray.model.training import FitSettings, fit, load_checkpoint
from qray.study import Training

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("observer", ["moving_average", "minmax"])
def test_a_trial_trains_on_the_gpu_and_predicts_there_as_on_the_cpu(observer: str) -> None:
    settings = pt2e.QatSettings.model_validate({"observer": observer})
    model, example = realistic_model(), smooth_clips(2)
    module = pt2e.prepare_qat(model, example, settings)
    batches = list(toy_batches(6))
    fitting = FitSettings(
        Training(epochs=1, lr=1e-4, batch_size=8), len(batches), model.target_spread, 0, "fp32", "cuda"
    )
    [result] = fit(module, iter(batches), fitting)
    pt2e.set_training(module, False)
    here = pt2e.prepare_qat(realistic_model(), example, settings)
    here.load_state_dict(load_checkpoint(result.checkpoint)["model"])
    pt2e.set_training(here, False)
    with torch.no_grad():
        found = OnBoth(here, module).run(example)
    assert torch.isfinite(found).all()


class OnBoth(torch.fx.Interpreter):
    """Runs a graph on the CPU, and each of its operators on the GPU too, on the CPU's inputs.

    Whole predictions say little: where one weight lies between two codes, a random network makes points of it.
    """

    def __init__(self, here: torch.fx.GraphModule, there: torch.fx.GraphModule) -> None:
        super().__init__(here)
        self.there = there

    def run_node(self, n: torch.fx.Node) -> Any:
        args, kwargs = tree_map_only(torch.Tensor, lambda t: t.cuda(), self.fetch_args_kwargs_from_env(n))
        gpu = None
        if n.op == "call_module":
            gpu = self.there.get_submodule(str(n.target))(*args, **kwargs)
        elif n.op == "call_function" and any(isinstance(arg, torch.Tensor) for arg in args):
            gpu = n.target(*args, **kwargs)  # type: ignore[operator]
        cpu = super().run_node(n)
        if isinstance(gpu, torch.Tensor) and gpu.is_floating_point():
            same(n, gpu.cpu(), cpu, self.module.get_submodule(str(n.target)) if n.op == "call_module" else None)
        return cpu


def same(node: torch.fx.Node, gpu: torch.Tensor, cpu: torch.Tensor, fake_quantize: Any) -> None:
    apart = (gpu - cpu).abs()
    close = apart <= 1e-5 * cpu.abs().max()
    if fake_quantize is None or fake_quantize.qscheme is torch.per_tensor_affine:
        assert close.all(), f"{node}: {apart.max():.3g}"
        return
    # Of weights PyTorch's own kernels round the one or the other way what lies in the middle, by a code at most.
    assert close.float().mean() >= 0.95, f"{node}: {(~close).sum()} of {close.numel()} weights"
    steps = apart.flatten(1).amax(1) / fake_quantize.scale
    assert steps.max() < 1.01, f"{node}: {steps.max():.3g} codes"
