"""Anatomy and motion of a synthetic apical four-chamber heart whose ejection fraction is exact by construction.

The left-ventricular cavity is an ellipsoid of revolution (semi-axes a along the long axis, b across) cut off at the
mitral annulus, always at the same fraction `eta` of a beyond its centre. Its volume is pi a b^2 k(eta) with k fixed, so
the shape constant cancels and EF = 100 (EDV - ESV) / EDV holds for the drawn contour as it does for the parameters.

Sources: EF, image layout and frame rate follow EchoNet-Dynamic (Ouyang et al., Nature 580, 2020: mean EF 55.7 %, SD
12.5 %, 112 x 112 px, 50 frames/s). Volumes and wall thickness: Lang et al., JASE 28, 2015 (ASE/EACVI chamber
quantification). Systolic time: Weissler et al., Circulation 37, 1968 (LVET = 413 - 1.7 HR ms in men).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

FPS = 50
IMAGE_SIZE = 112
#: Rendered phases of a cycle. Phase 0 is end-diastole, phase SYSTOLE_PHASES is end-systole, exactly.
SYSTOLE_PHASES, DIASTOLE_PHASES = 11, 15
N_DISKS = 20

#: (share, mean EF, SD) of healthy, mildly reduced and severely reduced hearts; together 55.5 +- 12.2 %.
EF_MIXTURE = ((0.78, 60.2, 5.8), (0.13, 43.0, 8.0), (0.09, 27.5, 7.0))


@dataclass(frozen=True)
class Heart:
    """One patient. Volumes in ml, lengths in cm, times as fractions of the cardiac cycle unless named otherwise."""

    ef: float  # percent
    edv: float
    esv: float
    heart_rate: float  # beats per minute
    systole: float  # from end-diastole to end-systole
    rr_sd: float  # beat-to-beat variation of the cycle length, relative
    early_filling: float  # share of filling that the E wave brings; the A wave brings the rest
    eta: float  # where the annulus cuts the ellipsoid, in units of a beyond its centre
    length_to_width: float
    wall: float  # end-diastolic wall thickness
    longitudinal_shortening: float  # per unit of EF
    rv_width: float
    rv_shortening: float
    atrium_length: float
    atrium_width: float


def sample_heart(rng: np.random.Generator) -> Heart:
    """Draw a patient: EF from the mixture, larger ventricles at lower EF, shorter systole share at lower rate."""
    shares = np.array([share for share, _, _ in EF_MIXTURE])
    _, mean, sd = EF_MIXTURE[int(rng.choice(len(EF_MIXTURE), p=shares))]
    ef = float(np.clip(rng.normal(mean, sd), 10, 84))
    # Log-normal around 83 ml; a failing ventricle dilates (Lang 2015: normal EDV 62-150 ml in men, 46-106 in women).
    edv = float(np.clip(np.exp(np.log(83) + 0.34 * rng.normal() + 0.011 * (57 - ef)), 30, 320))
    heart_rate = float(np.clip(rng.normal(72, 15), 45, 120))
    # Weissler's ejection time plus 40 ms of isovolumic contraction.
    systole_s = 0.413 - 0.0017 * heart_rate + 0.04 + rng.normal(0, 0.015)
    return Heart(
        ef=ef,
        edv=edv,
        esv=edv * (1 - ef / 100),
        heart_rate=heart_rate,
        systole=float(np.clip(systole_s * heart_rate / 60, 0.24, 0.55)),
        rr_sd=abs(rng.normal(0, 0.02)),
        early_filling=rng.uniform(0.55, 0.8),
        eta=rng.uniform(0.40, 0.65),
        length_to_width=float(np.clip(rng.normal(1.78, 0.14) - 0.0012 * (edv - 90), 1.3, 2.2)),
        wall=float(np.clip(rng.normal(0.92, 0.13), 0.6, 1.4)),
        longitudinal_shortening=rng.uniform(0.18, 0.36),
        rv_width=rng.uniform(1.1, 1.7),
        rv_shortening=rng.uniform(0.15, 0.35),
        atrium_length=rng.uniform(3.0, 4.6),
        atrium_width=rng.uniform(1.5, 2.2),
    )


def contraction(phase: FloatArray, systole: float, early_filling: float) -> FloatArray:
    """Share of the stroke volume that has left the ventricle, 0 at end-diastole and 1 at end-systole.

    Isovolumic contraction, ejection, isovolumic relaxation, E wave, diastasis, A wave, each a half cosine.
    """
    isovolumic = 0.12 * systole
    ejection = np.clip((phase - isovolumic) / (systole - isovolumic), 0, 1)
    diastole = (phase - systole) / (1 - systole)
    e_wave = np.clip((diastole - 0.08) / 0.40, 0, 1)
    a_wave = np.clip((diastole - 0.70) / 0.28, 0, 1)

    def rise(share: FloatArray) -> FloatArray:
        return 0.5 - 0.5 * np.cos(np.pi * share)

    return rise(ejection) - early_filling * rise(e_wave) - (1 - early_filling) * rise(a_wave)


def truncated_ellipsoid_constant(eta: float) -> float:
    """k in V = pi a b^2 k: the integral of 1 - u^2 from the apex (-1) to the annulus (eta), plus nothing beyond."""
    return (eta + 2 / 3) - eta**3 / 3


@dataclass(frozen=True)
class Cycle:
    """The left ventricle at each rendered phase: float64 (P,) arrays, lengths in pixels, volume in ml.

    length: apex to annulus; a, b: semi-axes; wall: thickness at the side; apex: endocardial apex below the epicardial
    one; annulus: mitral plane; opening: of the mitral valve, 0 to 1; ejected: see `contraction`.
    """

    phase: FloatArray
    ejected: FloatArray
    volume: FloatArray
    length: FloatArray
    a: FloatArray
    b: FloatArray
    wall: FloatArray
    apex: FloatArray
    annulus: FloatArray
    opening: FloatArray


def beat(heart: Heart, cm_per_px: float) -> Cycle:
    """The cavity and its wall over one cardiac cycle."""
    phase = np.concatenate(
        [
            np.linspace(0, heart.systole, SYSTOLE_PHASES, endpoint=False),
            np.linspace(heart.systole, 1, DIASTOLE_PHASES, endpoint=False),
        ]
    )
    ejected = contraction(phase, heart.systole, heart.early_filling)
    ejected[0], ejected[SYSTOLE_PHASES] = 0, 1
    volume = heart.edv - (heart.edv - heart.esv) * ejected
    k, eta = truncated_ellipsoid_constant(heart.eta), heart.eta
    # V = pi a b^2 k with L = a (1 + eta) and L = 2 b length_to_width, solved for L at end-diastole.
    length_ed = (4 * heart.edv * heart.length_to_width**2 * (1 + eta) / (np.pi * k)) ** (1 / 3)
    length = length_ed * (1 - heart.longitudinal_shortening * heart.ef / 100 * ejected)
    a = length / (1 + eta)
    b = np.sqrt(volume / (np.pi * a * k))
    # Myocardium keeps its volume, so that the wall thickens as the cavity shrinks.
    shell = (2 * b[0] * heart.wall + heart.wall**2) * length_ed / length
    wall = np.sqrt(b * b + shell) - b
    # The epicardial apex stays where it is; the apical wall is thinner than the side wall.
    apex = 0.75 * wall
    filling = np.clip((phase - heart.systole) / (1 - heart.systole) * 1.25 - 0.1, 0, 1)
    opening = np.where(phase > heart.systole, np.sin(np.pi * filling), 0.0).clip(0, 1)
    px = cm_per_px
    return Cycle(
        phase=phase, ejected=ejected, volume=volume, length=length / px, a=a / px, b=b / px, wall=wall / px,
        apex=apex / px, annulus=(apex + length) / px, opening=opening,
    )  # fmt: skip


def phase_of_frames(
    heart: Heart, cycle: Cycle, n_frames: int, start: float, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Index of the rendered phase that each frame shows; the length of each beat varies by `rr_sd`."""
    beats_per_frame = heart.heart_rate / 60 / FPS
    n_beats = int(n_frames * beats_per_frame) + 3
    lengths = np.clip(1 + rng.normal(0, heart.rr_sd, n_beats), 0.85, 1.15) / beats_per_frame
    edges = np.concatenate([[0], np.cumsum(lengths)]) - start * lengths[0]
    frame = np.arange(n_frames)
    at = np.searchsorted(edges, frame, side="right") - 1
    phase = (frame - edges[at]) / (edges[at + 1] - edges[at])
    nodes = np.append(cycle.phase, 1.0)
    after = np.clip(np.searchsorted(nodes, phase), 1, len(nodes) - 1)
    nearest = np.where(phase - nodes[after - 1] < nodes[after] - phase, after - 1, after)
    return nearest % len(cycle.phase)
