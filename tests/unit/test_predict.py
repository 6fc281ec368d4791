"""Videos in, predictions out: one that cannot be read does not keep the others from being predicted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.avi import drop_frames
from support.videos import numbered_frames, write_video

from qray.commands import predict_files
from qray.data.decode import decode_frames, evaluation_indices
from qray.engines.artifact import BuildRequest
from qray.engines.registry import build_artifact
from qray.errors import QrayError
from qray.model.regressor import build_regressor
from qray.predict import predict_videos
from qray.study import ClipSpec, Model, Variant

CLIP = ClipSpec(frames=4, image_size=32, stride=2, eval_windows=2)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_regressor(Model(width=4), 55.0, 12.0, seed=0).eval()


@pytest.fixture(scope="module")
def artifact(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "key"
    variant = Variant(name="fp32", method="fp32", engine="eager")
    build_artifact(BuildRequest(variant=variant, model=model, clip=CLIP), "key", folder)  # type: ignore[arg-type]
    return folder


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "good.avi", numbered_frames(30))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    (tmp_path / "broken.avi").write_bytes(b"RIFF no video")
    return tmp_path / "broken.avi"


def test_a_prediction_is_the_models_mean_over_the_windows(artifact: Path, model: torch.nn.Module, video: Path) -> None:
    clips = decode_frames(video, evaluation_indices(30, CLIP), CLIP.image_size)
    with torch.no_grad():
        expected = float(np.mean(model(torch.from_numpy(clips)).numpy()))
    ((_, value, reason),) = predict_videos(artifact, [video])
    assert (value, reason) == (pytest.approx(expected, abs=1e-3), None)


def test_a_video_shorter_than_a_clip_is_predicted(artifact: Path, tmp_path: Path) -> None:
    ((_, value, _),) = predict_videos(artifact, [write_video(tmp_path / "short.avi", numbered_frames(2))])
    assert value is not None


def test_a_video_is_predicted_as_it_is_shown(artifact: Path, tmp_path: Path) -> None:
    frames = numbered_frames(8)
    frames[:, 40:, 10:20] = 230
    values = []
    for degrees in (0, 90, 180):
        path = write_video(
            tmp_path / f"{degrees}.mp4",
            np.rot90(frames, -degrees // 90, axes=(1, 2)).copy(),
            "libx264",
            "yuv420p",
            set_up=lambda stream, degrees=degrees: stream.set_display_rotation(degrees),
        )
        ((_, value, reason),) = predict_videos(artifact, [path])
        assert reason is None
        values.append(value)
    ((_, untold, _),) = predict_videos(
        artifact,
        [write_video(tmp_path / "untold.mp4", np.rot90(frames, 2, axes=(1, 2)).copy(), "libx264", "yuv420p")],
    )
    assert max(values) - min(values) < abs(values[0] - untold) / 10


def test_a_video_with_dropped_frames_is_predicted(artifact: Path, tmp_path: Path) -> None:
    path = drop_frames(write_video(tmp_path / "a.avi", numbered_frames(18)), (4, 11))
    ((_, value, reason),) = predict_videos(artifact, [path])
    assert (value is None, reason) == (False, None)


def test_a_video_that_is_not_there_has_a_reason(artifact: Path, tmp_path: Path) -> None:
    ((_, value, reason),) = predict_videos(artifact, [tmp_path / "none.avi"])
    assert (value, bool(reason)) == (None, True)


def test_a_folder_in_place_of_a_video_has_a_reason(artifact: Path, tmp_path: Path) -> None:
    ((_, value, reason),) = predict_videos(artifact, [tmp_path])
    assert (value, bool(reason)) == (None, True)


def test_a_broken_video_keeps_no_other_from_being_predicted(artifact: Path, broken: Path, video: Path) -> None:
    assert [value is None for _, value, _ in predict_videos(artifact, [broken, video])] == [True, False]


def test_a_broken_video_fails_the_command(artifact: Path, broken: Path, video: Path) -> None:
    with pytest.raises(QrayError, match="1 of 2 videos") as caught:
        predict_files(artifact, [broken, video], 1, as_json=False)
    assert caught.value.exit_code == 1


def test_each_video_is_a_line(artifact: Path, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict_files(artifact, [video, video], 1, as_json=False)
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == [str(video)] * 2


def test_json_has_the_reason_of_what_failed(
    artifact: Path, broken: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(QrayError):
        predict_files(artifact, [broken, video], 1, as_json=True)
    first, second = json.loads(capsys.readouterr().out)
    assert (first["prediction"], bool(first["reason"]), second["reason"]) == (None, True, None)


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path, video: Path) -> None:
    with pytest.raises(QrayError, match="not an artifact"):
        list(predict_videos(tmp_path, [video]))


def test_an_artifact_whose_model_is_damaged_is_refused_with_its_file(
    artifact: Path, tmp_path: Path, video: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(artifact, damaged)
    (damaged / "model.pt2").write_bytes(b"nothing")
    with pytest.raises(QrayError, match=r"model\.pt2: not a program"):
        list(predict_videos(damaged, [video]))


def test_a_prediction_that_is_no_number_is_a_reason(tmp_path: Path, video: Path) -> None:
    nan = build_regressor(Model(width=4), float("nan"), 1.0, seed=0).eval()
    variant = Variant(name="fp32", method="fp32", engine="eager")
    build_artifact(BuildRequest(variant=variant, model=nan, clip=CLIP), "nan", tmp_path / "nan")
    ((_, value, reason),) = predict_videos(tmp_path / "nan", [video])
    assert (value, reason) == (None, "the model's prediction is not a finite number")
