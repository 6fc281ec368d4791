"""Frames and tracings of a synthetic heart: each phase of a beat is rendered once, frames are picked from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qray.synthetic.phantom import (
    FPS,
    IMAGE_SIZE,
    N_DISKS,
    SYSTOLE_PHASES,
    Cycle,
    Heart,
    beat,
    phase_of_frames,
    sample_heart,
)
from qray.synthetic.view import (
    BANK_SIZE,
    MARGIN,
    NOISE_IMAGES,
    NOISE_SIZE,
    TEXTURE_MARGIN,
    TEXTURE_SCALE,
    TEXTURE_SIZE,
    Image,
    View,
    gain_map,
    noise_images,
    pixel_grid,
    sample_view,
    sector_mask,
    speckle_texture,
)

BREATHS_PER_S = 0.25
f32 = np.float32


@dataclass(frozen=True)
class Echo:
    """One synthetic video: uint8 (N, 112, 112) grey frames, the patient, and traced frames.

    tracings: frame number -> float64 (1 + N_DISKS, 4), rows x1, y1, x2, y2: the long axis, then the disks from the
    apex to the annulus, for the first end-diastolic and the first end-systolic frame.
    """

    heart: Heart
    frames: NDArray[np.uint8]
    tracings: dict[int, NDArray[np.float64]]


def _inside(distance: Image) -> Image:
    """Soft membership from a signed distance in pixels, positive inside. Overwrites its argument."""
    distance += f32(0.5)
    return np.clip(distance, 0, 1, out=distance)


def _paint(image: Image, level: float | np.floating | Image, cover: Image) -> None:
    """Blend `level` (dB) over the image where `cover` is 1."""
    image += (level - image) * cover


@dataclass(frozen=True)
class _Scene:
    """What does not move: levels in dB, textures, and the pixel grid along (u) and across (v) the long axis."""

    heart: Heart
    view: View
    cycle: Cycle
    u: Image
    v: Image
    axis: tuple[np.float32, np.float32]
    gain: Image
    background: Image
    shading: Image
    texture: Image
    blood: float
    pericardium: float
    valve: float


def _scene(heart: Heart, view: View, cycle: Cycle, rng: np.random.Generator) -> _Scene:
    x, y = pixel_grid(BANK_SIZE, MARGIN)
    sin, cos = f32(np.sin(view.rotation)), f32(np.cos(view.rotation))
    dx, dy = x - f32(view.apex_x), y - f32(view.apex_y)
    u, v = dx * sin + dy * cos, dx * cos - dy * sin
    along = np.clip(u / f32(cycle.annulus[0]), 0, 1.6)
    v = v - f32(4 * view.bend) * along * (1 - along)
    texture = speckle_texture(view, rng).ravel()
    gain, background = gain_map(view, rng)
    # Walls parallel to the beam scatter less back to the probe: the lateral wall fades at mid height.
    shading = -rng.uniform(0, 6) * np.clip(1 - np.abs(along - 0.6) * 2.5, 0, 1) * (v > 0)
    return _Scene(
        heart, view, cycle, u, v, (sin, cos), gain, background, shading.astype(np.float32), texture,
        blood=-38 + rng.uniform(-4, 8), pericardium=rng.uniform(5, 11), valve=rng.uniform(-2, 5),
    )  # fmt: skip


def _swing(view: View, phase: float) -> tuple[np.float32, np.float32]:
    """Shift of the whole heart along u and v at a phase, pixels."""
    x, y = (s * np.sin(2 * np.pi * (phase + p)) for s, p in zip(view.swing, view.swing_phase, strict=True))
    sin, cos = np.sin(view.rotation), np.cos(view.rotation)
    return f32(x * sin + y * cos), f32(x * cos - y * sin)


def _chamber(
    image: Image,
    q: Image,
    radius: float | np.floating,
    wall: tuple[float, float],
    below: Image,
    wall_db: float,
    blood_db: float,
) -> None:
    """Paint a thin-walled chamber: `q` is 1 on its inner surface, `wall` the outer surface and its softness."""
    cover = _inside((f32(wall[0]) - q) * f32(radius * wall[1]))
    cover *= below
    _paint(image, f32(wall_db), cover)
    cover = _inside((1 - q) * f32(radius * 0.5))
    cover *= below
    _paint(image, f32(blood_db), cover)


def _render_phase(scene: _Scene, at: int) -> NDArray[np.int16]:
    """One phase as grey levels before noise, int16 (BANK_SIZE, BANK_SIZE)."""
    heart, view, cycle = scene.heart, scene.view, scene.cycle
    a, b = f32(cycle.a[at]), f32(cycle.b[at])
    wall, apex, annulus = f32(cycle.wall[at]), f32(cycle.apex[at]), f32(cycle.annulus[at])
    ejected, opening = f32(cycle.ejected[at]), f32(cycle.opening[at])
    length_ed, b_ed, wall_ed = f32(cycle.length[0]), f32(cycle.b[0]), f32(cycle.wall[0])
    px = view.cm_per_px
    du, dv = _swing(view, float(cycle.phase[at]))
    u, v = scene.u - du, scene.v - dv
    v2 = v * v
    from_centre2 = (u - (apex + a)) ** 2
    above_annulus = annulus - u
    ventricle_side = _inside(above_annulus.copy())
    atrium_side = 1 - ventricle_side
    q = v2 * (1 / (b * b)) + from_centre2 * (1 / (a * a))
    q_epi = v2 * (1 / (b + wall) ** 2) + from_centre2 * (1 / (a + f32(0.75) * wall) ** 2)
    myocardium = -9 + view.contrast
    image = scene.background.copy()

    # Right ventricle, left of the septum.
    rv = heart.rv_width / px
    rv_now = f32(rv * (1 - heart.rv_shortening * ejected))
    v_right = v + f32(b_ed + wall_ed + 0.25 * rv)
    tricuspid = annulus + f32(0.04) * length_ed
    above_tricuspid = tricuspid - u
    q_rv = (v_right / rv_now) ** 2 + ((u - tricuspid + f32(0.42) * length_ed) / (f32(0.50) * length_ed)) ** 2
    right_side = _inside(above_tricuspid.copy())
    cover = _inside((f32(1.45) - q_rv) * (rv_now * f32(0.42)))
    cover *= _inside(above_tricuspid + f32(1.5))
    _paint(image, f32(myocardium - 2), cover)
    _paint(image, f32(scene.blood), _inside((1 - q_rv) * (rv_now * f32(0.5))) * right_side)

    # Atria: they fill while the annulus descends.
    far = cycle.annulus[0] + heart.atrium_length / px
    half_length = f32((far - annulus) * 0.54)
    width = f32(heart.atrium_width / px * (0.86 + 0.14 * ejected))
    along = ((u - (f32(far) - half_length)) / half_length) ** 2
    left = v2 * (1 / (width * width)) + along
    _chamber(image, left, width, (1.3, 0.45), atrium_side, myocardium + 1, scene.blood)
    right = ((v_right - f32(0.08 * rv)) / (f32(0.9) * width)) ** 2 + along
    _chamber(image, right, f32(0.9) * width, (1.3, 0.45), 1 - right_side, myocardium + 1, scene.blood)

    # Left ventricle: wall, bright lateral pericardium, cavity.
    cover = _inside((1 - q_epi) * ((b + wall) * f32(0.5)))
    cover *= _inside(above_annulus + f32(0.25) * wall)
    _paint(image, f32(myocardium) + scene.shading, cover)
    rim = np.clip(1 - np.abs(q_epi - 1) * ((b + wall) * f32(0.45)), 0, 1)
    rim *= ventricle_side
    rim *= v > 0
    image += rim * f32(scene.pericardium)
    cover = _inside((1 - q) * (b * f32(0.5)))
    cover *= ventricle_side
    _paint(image, f32(scene.blood), cover)

    # Valves: closed in the plane of the annulus, the mitral leaflets swing into the ventricle.
    from_hinge = b * f32(np.sqrt(max(1e-3, 1 - heart.eta**2))) - np.abs(v)
    hinge = from_hinge + np.abs(v)
    leaflet = 1 - np.abs(above_annulus - from_hinge * (f32(0.12) + f32(1.5) * opening)) / (f32(1.1) + opening)
    leaflet *= (from_hinge > -1) & (from_hinge < hinge * (1 - f32(0.62) * opening))
    _paint(image, f32(scene.valve - 6), np.clip(leaflet, 0, 1, out=leaflet))
    leaflet = np.clip(1 - np.abs(above_tricuspid) * f32(0.7), 0, 1)
    leaflet *= (q_rv < 1) * (1 - opening * f32(0.8))
    _paint(image, f32(scene.valve - 8), leaflet)

    image += _tissue_speckle(scene, at, u, v, v2, from_centre2)
    image += scene.gain
    image += f32(view.dynamic_range - 8)
    image *= f32(255 / view.dynamic_range)
    return image.astype(np.int16)


def _tissue_speckle(scene: _Scene, at: int, u: Image, v: Image, v2: Image, from_centre2: Image) -> Image:
    """Speckle carried along by the tissue: each pixel looks up where its material was at end-diastole.

    Long-axis lengths scale with the cavity; across, the area between a point and the cavity's surface is kept.
    """
    cycle, view = scene.cycle, scene.view
    a, b, apex = f32(cycle.a[at]), f32(cycle.b[at]), f32(cycle.apex[at])
    length, length_ed, b_ed = f32(cycle.length[at]), f32(cycle.length[0]), f32(cycle.b[0])
    below_apex = u - apex
    stretch = np.minimum(length_ed / length, 1 + (length_ed - length) / np.maximum(below_apex, 1))
    u_ed = below_apex * stretch + f32(cycle.apex[0])
    inside = np.clip(1 - from_centre2 * (1 / (a * a)), 0, 1)
    v_ed = np.sqrt(np.maximum(v2 + (b_ed * b_ed - b * b) * inside, 0)) * np.sign(v)
    sin, cos = scene.axis
    x = (u_ed * sin + v_ed * cos + f32(view.apex_x + TEXTURE_MARGIN)) * f32(TEXTURE_SCALE)
    y = (u_ed * cos - v_ed * sin + f32(view.apex_y + TEXTURE_MARGIN)) * f32(TEXTURE_SCALE)
    x_at = np.clip(x, 0, TEXTURE_SIZE - 1).astype(np.int32)
    y_at = np.clip(y, 0, TEXTURE_SIZE - 1).astype(np.int32)
    return scene.texture.take(y_at * TEXTURE_SIZE + x_at)


def _trace(scene: _Scene, at: int, breath_px: int) -> NDArray[np.float64]:
    """The tracing of a phase in image pixels: float64 (1 + N_DISKS, 4)."""
    view, cycle = scene.view, scene.cycle
    du, dv = _swing(view, float(cycle.phase[at]))
    sin, cos = np.sin(view.rotation), np.cos(view.rotation)

    def to_image(u: float, v: float) -> tuple[float, float]:
        u = u + float(du)
        along = np.clip(u / cycle.annulus[0], 0, 1.6)
        v = v + float(dv) + 4 * view.bend * along * (1 - along)
        return view.apex_x + u * sin + v * cos, view.apex_y + u * cos - v * sin - breath_px

    apex, length, a, b = cycle.apex[at], cycle.length[at], cycle.a[at], cycle.b[at]
    rows = [(*to_image(apex, 0.0), *to_image(apex + length, 0.0))]
    for share in (np.arange(N_DISKS) + 0.5) / N_DISKS:
        u = share * length
        half = b * np.sqrt(max(0.0, 1 - ((u - a) / a) ** 2))
        rows.append((*to_image(apex + u, -half), *to_image(apex + u, half)))
    return np.array(rows)


def make_echo(rng: np.random.Generator) -> Echo:
    """Draw a patient and an acquisition, and render the video."""
    heart = sample_heart(rng)
    view = sample_view(heart, rng)
    cycle = beat(heart, view.cm_per_px)
    scene = _scene(heart, view, cycle, rng)
    shown = phase_of_frames(heart, cycle, view.n_frames, view.start, rng)
    bank = {int(at): _render_phase(scene, int(at)) for at in np.unique(shown)}
    time_s = np.arange(view.n_frames) / FPS
    breath = view.breathing * np.sin(2 * np.pi * (time_s * BREATHS_PER_S + view.breathing_phase))
    breath_px = np.rint(breath).astype(int).clip(-MARGIN, MARGIN)
    noise, mask = noise_images(view, rng), sector_mask(view)
    corners = rng.integers(0, NOISE_SIZE - IMAGE_SIZE, (view.n_frames, 2))
    which = rng.integers(0, NOISE_IMAGES, view.n_frames)
    frames = np.empty((view.n_frames, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    grey = np.empty((IMAGE_SIZE, IMAGE_SIZE), np.int16)
    for i, at in enumerate(shown):
        top, (y, x) = MARGIN + breath_px[i], corners[i]
        still = bank[int(at)][top : top + IMAGE_SIZE, MARGIN : MARGIN + IMAGE_SIZE]
        np.add(still, noise[which[i], y : y + IMAGE_SIZE, x : x + IMAGE_SIZE], out=grey)
        np.clip(grey, 0, 255, out=grey)
        np.multiply(grey, mask, out=grey)
        frames[i] = grey
    tracings = {}
    for at in (0, SYSTOLE_PHASES):
        seen = np.flatnonzero(shown == at)
        if len(seen):
            tracings[int(seen[0])] = _trace(scene, at, int(breath_px[seen[0]]))
    return Echo(heart, frames, tracings)
