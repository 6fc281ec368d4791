"""The videos that tests encode leave the process that encodes them as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.videos import numbered_frames, write_video


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has no scheduling policies")
def test_an_av1_encoder_leaves_no_real_time_priority(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(4), "libsvtav1", "yuv420p")
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
