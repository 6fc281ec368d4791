"""Synthetic hearts have the ejection fractions of the real set, and the videos look like its videos."""

from __future__ import annotations

import numpy as np
import pytest

from qray.synthetic.phantom import FPS, SYSTOLE_PHASES, Heart, beat, phase_of_frames, sample_heart
from qray.synthetic.render import make_echo
from qray.synthetic.view import sample_view


@pytest.fixture(scope="module")
def hearts() -> list[Heart]:
    rng = np.random.default_rng(0)
    return [sample_heart(rng) for _ in range(4000)]


def test_ejection_fractions_are_spread_as_in_the_real_set(hearts: list[Heart]) -> None:
    ef = np.array([heart.ef for heart in hearts])
    assert abs(ef.mean() - 55.5) < 1.2
    assert abs(ef.std() - 12.2) < 0.8
    assert 5 < ef.min() < 20
    assert 70 < ef.max() < 90


def test_the_ejection_fraction_is_that_of_the_volumes(hearts: list[Heart]) -> None:
    assert all(abs(100 * (heart.edv - heart.esv) / heart.edv - heart.ef) < 1e-9 for heart in hearts)


def test_the_drawn_volume_is_largest_and_smallest_at_the_traced_phases(hearts: list[Heart]) -> None:
    for heart in hearts[:300]:
        volume = beat(heart, 0.15).volume
        assert (volume.argmax(), volume.argmin()) == (0, SYSTOLE_PHASES)


def test_every_video_shows_both_traced_phases(hearts: list[Heart]) -> None:
    rng = np.random.default_rng(1)
    for heart in hearts[:1500]:
        view = sample_view(heart, rng)
        shown = phase_of_frames(heart, beat(heart, view.cm_per_px), view.n_frames, view.start, rng)
        assert {0, SYSTOLE_PHASES} <= set(shown.tolist())


def test_beats_last_as_long_as_the_heart_rate_says(hearts: list[Heart]) -> None:
    rng = np.random.default_rng(1)
    for heart in hearts[:50]:
        shown = phase_of_frames(heart, beat(heart, 0.15), 2000, 0.0, rng)
        beats = np.count_nonzero(np.diff(shown) < 0)
        assert abs(beats - 2000 / FPS * heart.heart_rate / 60) < 3


def test_the_same_seed_draws_the_same_video() -> None:
    first, second, other = (make_echo(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert (first.frames == second.frames).all()
    assert first.heart == second.heart != other.heart


def test_the_picture_moves_with_the_heart_and_is_dark_outside_the_sector() -> None:
    frames = make_echo(np.random.default_rng(5)).frames
    assert frames.shape[1:] == (112, 112)
    assert frames.dtype == np.uint8
    assert not frames[:, 100:, :4].any()
    assert 15 < frames.mean() < 120
    assert frames.astype(float).std(0).mean() > 3
