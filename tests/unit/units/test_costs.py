"""Timing the costs of a clip: its key holds what it depends on, and the process that times decodes real videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.graphs import manifest_of, only
from support.networks import TINY, realistic_model
from support.videos import numbered_frames, write_video

from qray.errors import QrayError
from qray.measure.costs import PARTS
from qray.model.training import dump_checkpoint
from qray.study import ClipSpec, Measure, Study
from qray.units.costs import CLIPS, CostJob, cost_job, measure_costs
from qray.units.plan import study_units

SHORT = Measure(seconds=0.04, min_calls=4, blocks=2, warmup_calls=1)
SPEC = ClipSpec(frames=4, image_size=32, stride=2, eval_windows=1)
STUDY: dict[str, Any] = {"name": "s", "variants": [{"name": "fp32", "method": "fp32", "engine": "eager"}]}


def key(test: int = 3, **changes: Any) -> str:
    study = Study.model_validate(STUDY | changes)
    return only(study_units(study, manifest_of({"TRAIN": 1, "VAL": 1, "TEST": test})), "costs").key


def job(test: int = 3, **changes: Any) -> CostJob:
    return cost_job(Study.model_validate(STUDY | changes), manifest_of({"TRAIN": 1, "VAL": 1, "TEST": test}, "/data"))


@pytest.mark.parametrize(
    "changes",
    [{"measure": {"seconds": 9.0}}, {"measure": {"blocks": 4}}, {"clip": {"frames": 8}}, {"model": {"width": 8}},
     {"seed": 1}, {"test": 4}],
    ids=str,
)  # fmt: skip
def test_what_the_costs_depend_on_changes_their_key(changes: dict[str, Any]) -> None:
    assert key(**changes) != key()


@pytest.mark.parametrize(
    "changes", [{"measure": {"threads": [1, 2]}}, {"measure": {"batches": [8]}}, {"clip": {"eval_windows": 1}}], ids=str
)
def test_what_the_costs_do_not_depend_on_leaves_their_key(changes: dict[str, Any]) -> None:
    assert key(**changes) == key()


def test_the_clips_are_spread_over_test() -> None:
    videos = job(test=100).videos
    assert (len(videos), videos[0], videos[-1]) == (CLIPS, ("/data/clip-2.avi", 42), ("/data/clip-101.avi", 141))


def test_a_small_test_split_is_taken_whole() -> None:
    assert [path for path, _ in job(test=2).videos] == ["/data/clip-2.avi", "/data/clip-3.avi"]


def test_a_clip_is_one_window_as_latency_has_it() -> None:
    assert job(clip={"eval_windows": 5}).clip.windows == 1


def measured(*videos: Path) -> dict[str, Any]:
    checkpoint = dump_checkpoint({"model": realistic_model(passes=1).state_dict()})
    return measure_costs(CostJob(TINY, SPEC, tuple((str(path), 20) for path in videos), SHORT), checkpoint)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The costs of a sound video, beside one that is missing."""
    folder = tmp_path_factory.mktemp("videos")
    return measured(folder / "missing.avi", write_video(folder / "sound.avi", numbered_frames(20)))


def test_every_part_of_a_real_clip_is_timed(found: dict[str, Any]) -> None:
    assert all(min(map(min, found["blocks_ms"][part])) > 0 for part in PARTS)


def test_a_clip_that_cannot_be_decoded_is_left_out_and_named(found: dict[str, Any]) -> None:
    assert found["clips"] == 1
    assert [Path(path).name for path in found["failed_clips"]] == ["missing.avi"]


def test_the_record_says_what_was_timed_and_where(found: dict[str, Any]) -> None:
    what = [found[name] for name in ("frames", "image_size", "engine", "method", "threads", "batch")]
    assert (what, bool(found["host"])) == ([4, 32, "eager", "fp32", 1, 1], True)


def test_without_any_clip_that_decodes_the_reason_is_named(tmp_path: Path) -> None:
    with pytest.raises(QrayError, match=r"none of 1 TEST clips could be decoded; the first: .*gone\.avi"):
        measured(tmp_path / "gone.avi")
