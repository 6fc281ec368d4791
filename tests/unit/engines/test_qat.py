"""QAT: the module trains, its state travels, its freezes hold, and what is deployed is what was simulated."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from itertools import repeat
from typing import Any

import pytest
import torch
from support.networks import CONVOLUTIONS, TARGET_STD, TINY_CLIP, request, smooth_clips, toy_batches, two_stages
from support.shelf import QAT_TRAINING, Shelf, train_qat
from torch import nn

from qray.engines import pt2e
from qray.engines.artifact import BuildRequest
from qray.engines.qat_patterns import check_folded
from qray.errors import QrayError
from qray.measure.isa import native_isa, range_is_reduced
from qray.model.regressor import VideoRegressor
from qray.model.training import FitSettings, fit
from qray.study import Variant

Module = torch.fx.GraphModule


def prepared(**settings: Any) -> Module:
    return pt2e.prepare_qat(two_stages(), smooth_clips(2, seed=1), pt2e.QatSettings.model_validate(settings))


@pytest.fixture(scope="module")
def untrained() -> Module:
    """A prepared module of the settings of the shelf's. Tests take copies."""
    return prepared(reduce_range=range_is_reduced(native_isa(), 8))


@pytest.fixture(scope="module")
def module(untrained: Module) -> Module:
    """A prepared module that saw two batches. Tests leave it in training mode."""
    made = copy.deepcopy(untrained)
    for batch in toy_batches(2):
        made(batch.clips)
    return made


def ranges(module: Module) -> dict[str, torch.Tensor]:
    """Activation ranges that the module has seen."""
    return {
        name: value.clone()
        for name, value in module.state_dict().items()
        if name.endswith((".min_val", ".max_val")) and value.numel() == 1
    }


def running_means(module: Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if name.endswith("running_mean")}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return bool(one) and all(torch.equal(one[name], other[name]) for name in one)


def test_a_module_to_train_names_no_device(module: Module) -> None:
    """Export asserts that clips are where the example was, and the trial moves to a GPU where there is one."""
    named = [node.format_node() for node in module.graph.nodes if "device" in node.kwargs]
    assert named == []


def test_a_switch_reaches_every_batch_norm(module: Module) -> None:
    for training in (False, True):
        pt2e.set_training(module, training)
        flags = [n.args[5] for n in module.graph.nodes if n.target is torch.ops.aten.batch_norm.default]
        assert flags == [training] * CONVOLUTIONS


def test_the_loss_gets_lower(untrained: Module) -> None:
    """On one batch again and again, so that no other batch's difficulty is in the way."""
    losses: list[float] = []
    training = QAT_TRAINING.model_copy(update={"lr": 3e-4})
    settings = FitSettings(training, 10, TARGET_STD, seed=0)
    steps = fit(copy.deepcopy(untrained), repeat(next(toy_batches(1))), settings, None, None,
                lambda loss, clips: losses.append(loss))  # fmt: skip
    assert len(list(steps)) == 1
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_a_state_loads_into_another_module_of_the_same_settings(shelf: Shelf, untrained: Module) -> None:
    other = copy.deepcopy(untrained)
    other.load_state_dict(shelf.qat.state)
    assert same(shelf.qat.state, other.state_dict())


def test_preparing_and_training_leave_the_fp32_model_as_it_was(shelf: Shelf) -> None:
    assert shelf.qat.losses
    assert same(two_stages().state_dict(), shelf.model.state_dict())
    assert not shelf.model.training


def test_a_batch_norm_that_is_not_folded_fails_the_build(untrained: Module) -> None:
    with pytest.raises(
        QrayError, match=f"QAT left {CONVOLUTIONS} batch-norms that are not folded into convolutions: batch_norm"
    ):
        check_folded(untrained)


@pytest.mark.slow
def test_no_pattern_is_spared_that_would_have_matched(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    build, clips = shelf.request("qat-inductor"), torch.from_numpy(shelf.clips)
    few = pt2e.quantized(build)
    monkeypatch.setattr(pt2e, "few_patterns", nullcontext)
    with torch.no_grad():
        torch.testing.assert_close(few(clips), pt2e.quantized(build)(clips), rtol=0, atol=0)


def test_the_example_that_was_traced_leaves_no_trace_in_the_ranges() -> None:
    """Minimum and maximum are kept for ever: a black example would widen or shift every range."""
    assert all(value.isinf() for value in ranges(prepared(observer="minmax")).values())


def test_evaluation_calibrates_nothing(module: Module) -> None:
    before = ranges(module)
    pt2e.set_training(module, False)
    module(smooth_clips(4, seed=50))
    pt2e.set_training(module, True)
    assert same(before, ranges(module))


def test_training_goes_on_observing_after_an_evaluation(module: Module) -> None:
    pt2e.set_training(module, False)
    pt2e.set_training(module, True)
    before = ranges(module)
    module(smooth_clips(4, seed=51))
    assert not same(before, ranges(module))


def test_frozen_observers_keep_their_ranges_in_training(module: Module) -> None:
    pt2e.freeze_observers(module)
    before = ranges(module)
    module(smooth_clips(4, seed=52))
    after = ranges(module)
    pt2e.set_training(module, True)
    assert same(before, after)


def test_frozen_batch_norm_keeps_its_statistics(module: Module) -> None:
    pt2e.freeze_batch_norm(module)
    before = running_means(module)
    module(smooth_clips(4, seed=53))
    after = running_means(module)
    pt2e.set_training(module, True)
    assert same(before, after)


def test_frozen_batch_norm_goes_on_observing_activations(module: Module) -> None:
    pt2e.freeze_batch_norm(module)
    before = ranges(module)
    module(smooth_clips(4, seed=54))
    after = ranges(module)
    pt2e.set_training(module, True)
    assert not same(before, after)


def test_training_updates_batch_norm(module: Module) -> None:
    before = running_means(module)
    module(smooth_clips(4, seed=55))
    assert not same(before, running_means(module))


def test_the_deployed_predictions_are_the_simulated_ones(shelf: Shelf) -> None:
    assert shelf["qat-inductor"].built.notes["parity_max_abs"] < 0.1 * TARGET_STD


def codes_of(module: nn.Module) -> list[torch.Tensor]:
    """INT8 weight codes of every convolution, one tensor (out channels, rest) each."""
    return [t.flatten(1) for t in module.state_dict().values() if t.dtype == torch.int8 and t.dim() == 4]


def most_codes(module: nn.Module) -> int:
    return max(len(channel.unique()) for codes in codes_of(module) for channel in codes)


def quantized_w4(method: str, model: VideoRegressor) -> nn.Module:
    variant = Variant(name="w4", method=method, engine="inductor", weight_bits=4)  # type: ignore[arg-type]
    if method == "ptq":
        return pt2e.quantized(request(variant, model))
    run = train_qat(two_stages(), steps=1, weight_bits=4)
    return pt2e.quantized(BuildRequest(variant, model, TINY_CLIP, (), run.state, run.settings))


@pytest.mark.parametrize("method", ["ptq", pytest.param("qat", marks=pytest.mark.slow)])
def test_four_bit_weights_are_at_most_sixteen_codes_per_channel(shelf: Shelf, method: str) -> None:
    module = quantized_w4(method, shelf.model)
    assert len(codes_of(module)) == CONVOLUTIONS
    assert most_codes(module) <= 16


def test_eight_bit_weights_use_more_than_sixteen_codes(shelf: Shelf) -> None:
    assert most_codes(shelf.simulated) > 16


def test_a_state_of_another_width_is_not_built_under_this_name(shelf: Shelf) -> None:
    variant = Variant(name="qat-w4", method="qat", engine="inductor", weight_bits=4)
    build = BuildRequest(variant, shelf.model, TINY_CLIP, (), shelf.qat.state, shelf.qat.settings)
    with pytest.raises(QrayError, match="weight_bits is 4, but the QAT module was trained with 8"):
        pt2e.quantized(build)


def test_qat_without_a_trained_state_says_so(shelf: Shelf) -> None:
    variant = Variant(name="qat", method="qat", engine="inductor")
    with pytest.raises(QrayError, match="qat: method qat is built from the state"):
        pt2e.quantized(BuildRequest(variant, shelf.model, TINY_CLIP))
