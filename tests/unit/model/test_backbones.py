"""The backbones of the catalog are torchvision's networks, at any width they have, and nothing of them is random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.networks import smooth_clips
from torch import nn
from torchvision import models

from qray.model.catalog import BACKBONES
from qray.model.regressor import VideoRegressor, build_regressor
from qray.study import ClipSpec, Model

SCALED = [name for name, backbone in BACKBONES.items() if backbone.width]
CLIP = ClipSpec(frames=8, image_size=48)


def of_torchvision(state: Any) -> dict[str, Any]:
    """Shapes of what is not the classifier's."""
    return {name: tuple(v.shape) for name, v in state.items() if name.split(".")[0] not in ("fc", "classifier")}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_has_the_state_that_torchvision_publishes(name: str) -> None:
    ours = VideoRegressor(Model(backbone=name)).backbone.state_dict()
    theirs = models.get_model(name, weights=None).state_dict()
    assert of_torchvision(ours) == of_torchvision(theirs)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_predicts_a_number_a_clip_and_nothing_of_it_is_random(name: str) -> None:
    """In training too: an exported graph could not switch it off."""
    width = BACKBONES[name].width
    model = build_regressor(Model(backbone=name, width=width and max(8, width // 4)), 50.0, 12.0, seed=0).train()
    clips = smooth_clips(2, CLIP)
    with torch.no_grad():
        one, other = model(clips), model(clips)
    assert one.shape == (2,)
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", BACKBONES)
def test_in_evaluation_a_backbone_normalises_as_its_last_batches_did(name: str) -> None:
    """S3D of torchvision has followed them by 4 % after 40 steps, and its VAL MAE went up while its loss went down."""
    width = BACKBONES[name].width
    model = build_regressor(Model(backbone=name, width=width and max(8, width // 4)), 50.0, 12.0, seed=0).train()
    clips = smooth_clips(2, ClipSpec(frames=8, image_size=32))
    first = next(m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(clips)
        for _ in range(40):
            first(seen[0])
    assert first.running_mean is not None
    torch.testing.assert_close(first.running_mean, seen[0].transpose(0, 1).flatten(1).mean(1), rtol=0.05, atol=1e-6)


@pytest.mark.parametrize("name", SCALED)
def test_the_width_is_that_of_the_first_convolution(name: str) -> None:
    with torch.device("meta"):
        widths = {}
        for width in (16, BACKBONES[name].width):
            backbone = VideoRegressor(Model(backbone=name, width=width)).backbone
            widths[width] = next(m for m in backbone.modules() if isinstance(m, nn.Conv2d)).out_channels
    assert list(widths) == list(widths.values())


def test_a_backbone_on_clips_sees_the_order_of_frames() -> None:
    for name, seen in (("r3d_18", True), ("resnet18", False)):
        model = build_regressor(Model(backbone=name), 50.0, 12.0, seed=0).eval()
        clips = smooth_clips(1, CLIP)
        with torch.no_grad():
            assert bool((model(clips) - model(clips.flip(1))).abs() > 1e-3) is seen


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"backbone": "s3d", "width": 32}, "backbone s3d has one width only; leave `width` out"),
        ({"backbone": "r3d_18", "pooling": "mean"}, "backbone r3d_18 sees whole clips and pools itself"),
        ({"backbone": "r3d_18", "weights": "imagenet"}, "weights of backbone r3d_18 are kinetics, not imagenet"),
        ({"backbone": "mobilenet_v2", "weights": "kinetics"}, "weights of backbone mobilenet_v2 are imagenet"),
        (
            {"backbone": "mobilenet_v2", "weights": "imagenet", "width": 16},
            "weights: imagenet exist only for",
        ),
        ({"backbone": "alexnet"}, "alexnet"),
    ],
)
def test_what_does_not_exist_is_refused_in_a_sentence(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Model(**asked)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "r3d_18"])
def test_published_weights_fill_the_backbone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state, enum = models.get_model(name, weights=None).state_dict(), models.get_model_weights(name)
    monkeypatch.setattr(enum, "get_state_dict", lambda self, *args, **kwargs: state)
    weights = BACKBONES[name].weights
    filled = build_regressor(Model(backbone=name, weights=weights), 0, 1, seed=0).backbone.state_dict()
    assert filled.keys() == of_torchvision(state).keys()
    assert all(torch.equal(value, state[key]) for key, value in filled.items())
