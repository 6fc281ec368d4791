"""Whoever decodes clips says which of them failed, and stops where more failed than the study allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import pandas as pd
import pytest
from support.videos import numbered_frames, write_video

from qray.data.stream import put_clips
from qray.errors import QrayError
from qray.model.regressor import VideoRegressor
from qray.model.training import dump_checkpoint
from qray.study import Sensitivity, Study
from qray.units.clips import Job, SplitClips
from qray.units.sensitivity import measure_layers
from qray.units.sweep import SweepJob
from qray.units.train import validate
from qray.units.trial import train_qat
from qray.units.work import fixed_batches

N_VIDEOS, GONE = 8, "6"
#: The last of so many parts is one layer.
LAYERS = 29
STUDY = Study.model_validate(
    {
        "name": "s",
        "clip": {"frames": 2, "image_size": 32, "stride": 2, "eval_windows": 1},
        "model": {"width": 4},
        "training": {"epochs": 1, "batch_size": 4},
        "calibration": {"batch_size": 4},
        "evaluation": {"batch_size": 4, "batch_timeout_s": 60},
        "variants": [{"name": "fp32", "method": "fp32", "engine": "eager"}],
    }
)
JOB = Job(STUDY, slot_cpus=0.5, board=None)
Use = Callable[[SplitClips, SplitClips, bytes], dict[str, str]]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Eight videos, of which one has gone since the manifest was read."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [write_video(folder / f"{i}.avi", numbered_frames(20)) for i in range(N_VIDEOS)]
    paths[int(GONE)].unlink()
    return pd.DataFrame(
        {"clip": [str(i) for i in range(N_VIDEOS)], "path": list(map(str, paths)), "n_frames": 20,
         "target": [float(i) for i in range(N_VIDEOS)]}
    )  # fmt: skip


@pytest.fixture(scope="module")
def weights() -> bytes:
    return dump_checkpoint({"model": VideoRegressor(STUDY.model).state_dict()})


def calibration(observed: SplitClips, val: SplitClips, weights: bytes) -> dict[str, str]:
    batches, failed = fixed_batches(observed, JOB, "calibrate")
    assert sum(map(len, batches)) == len(observed.clips) - len(failed)
    return {str(observed.clips["clip"][index]): reason for index, reason in failed.items()}


def curve(_: SplitClips, val: SplitClips, weights: bytes) -> dict[str, str]:
    found: dict[str, str] = validate(JOB, weights, val)["failed"]
    return found


def trial(train: SplitClips, val: SplitClips, weights: bytes) -> NoReturn:
    job = SweepJob(STUDY, 0.5, None, {}, 1, "")
    settings = {"weight_bits": 8, "lr": 1e-4, "epochs": 1, "observer": "minmax", "freeze_batch_norm_at": 0.0,
                "freeze_observers_at": 1.0, "keep_fp32": [], "reduce_range": False}  # fmt: skip
    raise AssertionError(
        list(train_qat("qat", {"key": "k", "keys": ["k"], "settings": settings, "until": 1}, job, weights, train, val))
    )


def layers(observed: SplitClips, val: SplitClips, weights: bytes) -> dict[str, str]:
    share = LAYERS - 1, LAYERS
    found: dict[str, str] = measure_layers(JOB, Sensitivity(), share, "any", weights, observed, val)["failed"]
    return found


@pytest.mark.parametrize("use", [calibration, curve, layers], ids=lambda use: use.__name__)
def test_a_clip_that_went_away_is_named(use: Use, clips: pd.DataFrame, weights: bytes, shared_ray: None) -> None:
    given = SplitClips(clips, put_clips(clips), 0.2)
    failed = use(given, given, weights)
    assert set(failed) == {GONE}
    assert "file not found" in failed[GONE]


@pytest.mark.parametrize("use", [calibration, curve, trial, layers], ids=lambda use: use.__name__)
def test_more_than_the_study_allows_is_an_error_that_names_them(
    use: Use, clips: pd.DataFrame, weights: bytes, shared_ray: None
) -> None:
    given = SplitClips(clips, put_clips(clips), 0.1)
    with pytest.raises(
        QrayError,
        match=r"1 of 8 clips for .*data.max_rejected = 0.1 allows: 6: .*file not found",
    ):
        use(given, given, weights)
