"""Augmentation changes a clip as a whole, in uint8, as its generator says."""

from __future__ import annotations

import torch
from support.networks import smooth_clips

from qray.model.training import augment_clips
from qray.study import Augment

NOTHING = Augment(shift_px=0, gain=0, bias=0)


def augmented(clips: torch.Tensor, config: Augment, seed: int = 0) -> torch.Tensor:
    return augment_clips(clips, config, torch.rand((len(clips), 4), generator=torch.Generator().manual_seed(seed)))


def test_shape_and_dtype_stay() -> None:
    clips = smooth_clips(3)
    result = augmented(clips, Augment())
    assert (result.shape, result.dtype) == (clips.shape, torch.uint8)


def test_nothing_asked_changes_nothing() -> None:
    clips = smooth_clips(3)
    assert torch.equal(augmented(clips, NOTHING), clips)


def test_the_clips_that_were_given_stay_as_they_are() -> None:
    clips = smooth_clips(3)
    augmented(clips, Augment())
    assert torch.equal(clips, smooth_clips(3))


def test_all_frames_of_a_clip_change_alike() -> None:
    still = smooth_clips(3)[:, :1].expand(-1, 4, -1, -1, -1)
    result = augmented(still, Augment())
    assert torch.equal(result, result[:, :1].expand_as(result))


def test_clips_change_each_in_its_own_way() -> None:
    result = augmented(smooth_clips(1).expand(2, -1, -1, -1, -1), Augment())
    assert not torch.equal(result[0], result[1])


def test_the_same_generator_gives_the_same_change() -> None:
    clips = smooth_clips(3)
    assert torch.equal(augmented(clips, Augment(), seed=4), augmented(clips, Augment(), seed=4))


def test_a_shift_moves_pixels_and_repeats_the_border() -> None:
    clips = smooth_clips(8)
    moved = augmented(clips, Augment(shift_px=3, gain=0, bias=0))
    for before, after in zip(clips, moved, strict=True):
        shifts = [
            (dy, dx)
            for dy in range(-3, 4)
            for dx in range(-3, 4)
            if torch.equal(torch.roll(before, (dy, dx), (1, 2))[:, 3:-3, 3:-3], after[:, 3:-3, 3:-3])
        ]
        assert shifts


def test_brightness_saturates_instead_of_wrapping() -> None:
    white = torch.full((16, 1, 16, 16, 3), 255, dtype=torch.uint8)
    assert int(augmented(white, Augment(shift_px=0, gain=0.1, bias=0.1)).min()) > 190


def test_contrast_and_brightness_stay_within_what_was_asked() -> None:
    grey = torch.full((64, 1, 16, 16, 3), 100, dtype=torch.uint8)
    result = augmented(grey, Augment(shift_px=0, gain=0.1, bias=0.1)).float()
    assert 100 * 0.9 - 26 <= float(result.min()) < 95
    assert 105 < float(result.max()) <= 100 * 1.1 + 26
