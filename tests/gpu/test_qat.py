"""QAT trains on a CUDA device, and what it leaves is built on the CPU: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.networks import realistic_model, smooth_clips, toy_batches

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
        gpu, cpu = module(example.cuda()).cpu().numpy(), here(example).numpy()
    # One step of one activation more or less, where sums of floats come in another order.
    np.testing.assert_allclose(gpu, cpu, atol=1.0)
