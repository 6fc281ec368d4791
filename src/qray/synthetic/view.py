"""How the scanner sees the heart: where the probe stands, the sector, speckle, attenuation, dropouts and noise.

Speckle is fully developed: the envelope of a complex Gaussian field, so Rayleigh in amplitude, then log compressed
(Burckhardt, IEEE Trans. Sonics Ultrason. 25, 1978; Wagner et al., ibid. 30, 1983). Levels are decibels until the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qray.synthetic.phantom import IMAGE_SIZE, Heart

Image = NDArray[np.float32]

#: Margin rendered around the image, so that breathing is an integer crop.
MARGIN = 3
BANK_SIZE = IMAGE_SIZE + 2 * MARGIN
#: Speckle is looked up at twice the image's resolution, over an area this much larger on each side.
TEXTURE_SCALE, TEXTURE_MARGIN = 2, MARGIN + 10
TEXTURE_SIZE = (IMAGE_SIZE + 2 * TEXTURE_MARGIN) * TEXTURE_SCALE
RANGE_CELLS, BEAM_CELLS = 150, 96
NOISE_IMAGES, NOISE_SIZE = 6, 176


@dataclass(frozen=True)
class View:
    """One acquisition. Pixels, decibels and radians; x to the right, y downwards."""

    n_frames: int
    start: float  # phase of the first frame
    cm_per_px: float
    rotation: float  # of the long axis against the vertical
    apex_x: float
    apex_y: float  # epicardial apex
    bend: float  # sideways bow of the ventricle; a shear, which keeps every disk's area
    swing: tuple[float, float]  # of the whole heart within a beat
    swing_phase: tuple[float, float]
    breathing: float
    breathing_phase: float
    probe_x: float
    probe_y: float
    sector_half_angle: float
    sector_radius: float
    gain: float
    dynamic_range: float
    attenuation: float  # over 100 px
    contrast: float
    noise: float  # grey levels
    haze: float  # near the probe
    dropouts: int


def sample_view(heart: Heart, rng: np.random.Generator) -> View:
    """Draw an acquisition; a larger heart is imaged at a slightly larger depth."""
    probe_y = rng.uniform(-3, 4)
    return View(
        n_frames=int(rng.integers(60, 201)),
        start=rng.random(),
        cm_per_px=rng.uniform(0.128, 0.166) * (heart.edv / 90) ** 0.15,
        rotation=rng.normal(0.06, 0.10),
        apex_x=rng.normal(60, 3.5),
        apex_y=probe_y + rng.uniform(9, 17),
        bend=rng.normal(0, 1.6),
        swing=(rng.normal(0, 0.8), rng.normal(0, 0.8)),
        swing_phase=(rng.random(), rng.random()),
        breathing=abs(rng.normal(0, 1.0)),
        breathing_phase=rng.random(),
        probe_x=55.5 + rng.normal(0, 1),
        probe_y=probe_y,
        sector_half_angle=np.deg2rad(rng.uniform(36, 45)),
        sector_radius=rng.uniform(104, 112),
        gain=rng.normal(0, 3.0),
        dynamic_range=rng.uniform(46, 60),
        attenuation=rng.uniform(0, 9),
        contrast=rng.uniform(-4, 3),
        noise=rng.uniform(4, 11),
        haze=rng.uniform(0, 14),
        dropouts=int(rng.integers(0, 4)),
    )


def pixel_grid(size: int, margin: int, step: float = 1.0) -> tuple[Image, Image]:
    """x and y of a square grid's pixels in image coordinates, float32 (size, size) each."""
    axis = (np.arange(size) * step - margin).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def polar(view: View, x: Image, y: Image) -> tuple[Image, Image]:
    """Range (pixels) and beam angle (radians, 0 straight down) seen from the probe."""
    dx, dy = x - np.float32(view.probe_x), y - np.float32(view.probe_y)
    return np.hypot(dx, dy), np.arctan2(dx, dy)


def gaussian_blur(field: Image, sigma: float, axis: int) -> Image:
    """Circular Gaussian blur along one axis."""
    radius = max(1, int(3 * sigma + 0.5))
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    out = np.zeros_like(field)
    for offset, weight in zip(offsets, kernel, strict=True):
        out += np.float32(weight) * np.roll(field, int(offset), axis)
    return out


def smooth_field(rng: np.random.Generator, size: int, cells: int) -> Image:
    """Low-frequency noise of unit variance at the nodes: `cells` x `cells` values, smoothly interpolated."""
    nodes = rng.standard_normal((cells, cells)).astype(np.float32)
    at = np.linspace(0, cells - 1.001, size)
    cell = at.astype(int)
    t = (at - cell).astype(np.float32)
    t = t * t * (3 - 2 * t)
    rows = nodes[cell] * (1 - t)[:, None] + nodes[cell + 1] * t[:, None]
    return rows[:, cell] * (1 - t) + rows[:, cell + 1] * t


def speckle_texture(view: View, rng: np.random.Generator) -> Image:
    """Log-compressed speckle of the tissue, dB, float32 (TEXTURE_SIZE, TEXTURE_SIZE), in its end-diastolic place.

    Made on the scan's own (range, beam) grid, so that grains widen with depth as they do in a sector scan.
    """
    field = rng.standard_normal((2, RANGE_CELLS, BEAM_CELLS)).astype(np.float32)
    field = gaussian_blur(gaussian_blur(field, 0.55, 1), 0.8, 2)
    envelope = np.hypot(field[0], field[1])
    envelope /= envelope.mean()
    decibels = np.clip(20 * np.log10(envelope + 1e-3), -22, 8).astype(np.float32)
    x, y = pixel_grid(TEXTURE_SIZE, TEXTURE_MARGIN, 1 / TEXTURE_SCALE)
    r, angle = polar(view, x, y)
    range_cell = np.clip(r * 1.1, 0, RANGE_CELLS - 1).astype(np.int32)
    beam_cell = np.clip((angle / 1.2 + 1) * 0.5 * (BEAM_CELLS - 1), 0, BEAM_CELLS - 1).astype(np.int32)
    texture = decibels[range_cell, beam_cell]
    texture = 0.5 * (texture + np.roll(texture, 1, 1))
    return texture + 2.5 * smooth_field(rng, TEXTURE_SIZE, 9)


def gain_map(view: View, rng: np.random.Generator) -> tuple[Image, Image]:
    """(gain, background) in dB, float32 (BANK_SIZE, BANK_SIZE): attenuation, shadows of ribs and lung, haze."""
    x, y = pixel_grid(BANK_SIZE, MARGIN)
    r, angle = polar(view, x, y)
    gain = view.gain - view.attenuation * (r / 100) + 2.0 * smooth_field(rng, BANK_SIZE, 5)
    for _ in range(view.dropouts):
        centre, width, depth = rng.uniform(-0.75, 0.75), rng.uniform(0.04, 0.16), rng.uniform(5, 60)
        shadow = np.exp(-(((angle - centre) / width) ** 2)) * np.clip((r - depth) / 10, 0, 1)
        gain = gain - rng.uniform(4, 20) * shadow
    gain = gain + view.haze * np.exp(-((r / 22) ** 2))
    background = -15 + 5 * smooth_field(rng, BANK_SIZE, 7) - 6 * (np.abs(angle) > 0.55)
    return gain.astype(np.float32), background.astype(np.float32)


def sector_mask(view: View) -> NDArray[np.int16]:
    """1 inside the scan sector and 0 outside, int16 (IMAGE_SIZE, IMAGE_SIZE)."""
    x, y = pixel_grid(IMAGE_SIZE, 0)
    r, angle = polar(view, x, y)
    return ((np.abs(angle) < view.sector_half_angle) & (r < view.sector_radius) & (r > 3)).astype(np.int16)


def noise_images(view: View, rng: np.random.Generator) -> NDArray[np.int16]:
    """Electronic noise, blurred along the beam's width, int16 (NOISE_IMAGES, NOISE_SIZE, NOISE_SIZE) grey levels."""
    noise = rng.standard_normal((NOISE_IMAGES, NOISE_SIZE, NOISE_SIZE), dtype=np.float32)
    return (gaussian_blur(noise, 0.7, 2) * 1.5 * view.noise).astype(np.int16)
