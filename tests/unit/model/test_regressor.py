"""The model: any width, three poolings, seeded, standardised, and torchvision's own network at width 64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import pytest
import torch
from support.networks import TARGET_MEAN, TARGET_STD, TINY, TINY_CLIP, realistic_model, smooth_clips
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from qray.errors import QrayError
from qray.model.regressor import VideoRegressor, build_regressor
from qray.study import Model

POOLINGS = ("mean", "mean_std", "max_min")
Pooling = Literal["mean", "mean_std", "max_min"]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_there_is_one_prediction_per_clip(pooling: Pooling) -> None:
    model = realistic_model(Model(width=8, pooling=pooling), passes=1)
    assert model(smooth_clips(3)).shape == (3,)


@pytest.mark.parametrize("width", [4, 8, 20])
def test_channels_double_at_each_stage_from_any_width(width: int) -> None:
    backbone = VideoRegressor(Model(width=width)).backbone
    stages = [getattr(backbone, f"layer{i}")[-1].conv2.out_channels for i in (1, 2, 3, 4)]
    assert stages == [width, 2 * width, 4 * width, 8 * width]


def test_the_full_width_has_the_state_of_torchvisions_resnet18() -> None:
    ours = {k: v.shape for k, v in VideoRegressor(Model(width=64)).backbone.state_dict().items()}
    theirs = {k: v.shape for k, v in resnet18(weights=None).state_dict().items() if not k.startswith("fc.")}
    assert ours == theirs


def test_the_full_width_computes_what_torchvisions_resnet18_does() -> None:
    theirs = resnet18(weights=None).eval()
    theirs.fc = nn.Identity()
    ours = VideoRegressor(Model(width=64)).backbone.eval()
    ours.load_state_dict(theirs.state_dict())
    frames = torch.randn((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(frames), theirs(frames))


def test_the_same_seed_gives_the_same_weights() -> None:
    one, other = (build_regressor(TINY, 0, 1, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_seed_gives_other_weights() -> None:
    one, other = (build_regressor(TINY, 0, 1, seed=seed) for seed in (3, 4))
    assert not torch.equal(one.backbone.conv1.weight, other.backbone.conv1.weight)


def test_building_leaves_the_callers_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    build_regressor(TINY, 0, 1, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_channels_last_predicts_the_same() -> None:
    clips = smooth_clips(4)
    with torch.no_grad():
        torch.testing.assert_close(
            realistic_model().channels_last()(clips), realistic_model()(clips), rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize("width", [4, 8, 16])
def test_gradients_are_those_of_float64_at_any_width(width: int) -> None:
    model = build_regressor(Model(width=width, pooling="mean_std"), TARGET_MEAN, TARGET_STD, seed=0)
    exact = copy.deepcopy(model).double()
    for network in (model.channels_last(), exact):
        frames = model.normalize(smooth_clips(4)).to(network.head.weight.dtype)
        network.read_out(network.backbone(frames), TINY_CLIP.frames).square().mean().backward()
    for name, parameter in exact.named_parameters():
        gradient, true = model.get_parameter(name).grad, parameter.grad
        assert gradient is not None, name
        assert true is not None, name
        error = float((gradient.double() - true).norm() / true.norm())
        # Rounding moves a few values over the kink of a ReLU, which costs 0.4 %; a wrong kernel costs 35 % and more.
        assert error < 0.05, f"{name}: off by {error:.1%}"


def test_a_head_that_says_nothing_predicts_the_target_mean() -> None:
    model = VideoRegressor(Model(width=8, head_init="zero"), TARGET_MEAN, TARGET_STD).eval()
    torch.testing.assert_close(model(smooth_clips(2)), torch.full((2,), TARGET_MEAN))


def test_predictions_are_in_target_units() -> None:
    model = realistic_model()
    clips = smooth_clips(2)
    with torch.no_grad():
        standardised = model.read_out(model.backbone(model.normalize(clips)), TINY_CLIP.frames)
        torch.testing.assert_close(model(clips), standardised * TARGET_STD + TARGET_MEAN)


def test_black_and_white_are_normalised_as_imagenet_is() -> None:
    clips = torch.stack([torch.zeros(1, 1, 1, 3), torch.full((1, 1, 1, 3), 255)]).to(torch.uint8)
    frames = VideoRegressor(TINY).normalize(clips).flatten(1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(frames, torch.stack([-mean / std, (1 - mean) / std]), rtol=1e-4, atol=1e-4)


class Levels(nn.Module):
    """A backbone of one feature: the mean normalised level of a frame."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.mean((1, 2, 3))[:, None]


def pooled(pooling: Pooling, clips: torch.Tensor) -> torch.Tensor:
    """What the head receives when a frame's only feature is its level, float32 (B, features)."""
    model = VideoRegressor(Model(width=8, pooling=pooling))
    model.backbone = Levels()  # type: ignore[assignment]
    model.head = nn.Identity()  # type: ignore[assignment]
    n_features = 1 if pooling == "mean" else 2
    frames = model.normalize(clips)
    return model.read_out(model.backbone(frames), clips.shape[1]).reshape(len(clips), n_features)


@pytest.fixture
def levels() -> torch.Tensor:
    """Normalised levels of the frames of two clips, float32 (2, T)."""
    return VideoRegressor(TINY).normalize(smooth_clips(2)).mean((1, 2, 3)).view(2, -1)


def test_mean_pooling_is_the_mean_over_time(levels: torch.Tensor) -> None:
    torch.testing.assert_close(pooled("mean", smooth_clips(2)), levels.mean(1, keepdim=True))


def test_mean_std_pooling_keeps_the_spread_over_time(levels: torch.Tensor) -> None:
    expected = torch.stack([levels.mean(1), (levels.var(1, unbiased=False) + 1e-5).sqrt()], 1)
    torch.testing.assert_close(pooled("mean_std", smooth_clips(2)), expected)


def test_max_min_pooling_keeps_the_extremes_over_time(levels: torch.Tensor) -> None:
    torch.testing.assert_close(pooled("max_min", smooth_clips(2)), torch.stack([levels.amax(1), levels.amin(1)], 1))


def test_a_still_clip_has_a_finite_gradient() -> None:
    model = realistic_model().train()
    still = smooth_clips(2)[:, :1].expand(-1, 4, -1, -1, -1)
    model(still).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_imagenet_weights_fill_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    state = resnet18(weights=None).state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, *args, **kwargs: state)
    backbone = build_regressor(Model(width=64, weights="imagenet"), 0, 1, seed=0).backbone.state_dict()
    assert all(torch.equal(backbone[name], value) for name, value in state.items() if not name.startswith("fc."))


def test_imagenet_weights_that_cannot_be_downloaded_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # Nothing listens on port 9 of this machine.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(
        QrayError, match=r"model\.weights is imagenet, but .* could not be had .*set model\.weights to none"
    ):
        build_regressor(Model(width=64, weights="imagenet"), 0, 1, seed=0)


@pytest.mark.parametrize(("width", "last"), [(4, False), (15, False), (16, True), (64, True)])
def test_channels_come_last_where_they_fill_a_register(width: int, last: bool) -> None:
    # In narrower networks oneDNN writes past a buffer: trainings ended in "free(): invalid next size", or differed.
    model = VideoRegressor(Model(width=width)).channels_last()
    frames = model.normalize(torch.zeros((1, 2, 32, 32, 3), dtype=torch.uint8))
    found = [
        tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (model.backbone.conv1.weight, frames)
    ]
    assert found == [last, last]
