"""How a command ends that followed a job."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qray.errors import Ended
from qray.jobs.command import end_as


def job(status: str, code: int | None = None, message: str = "") -> SimpleNamespace:
    """As much of Ray's `JobDetails` as is looked at."""
    return SimpleNamespace(
        submission_id="qray-x", status=SimpleNamespace(value=status), driver_exit_code=code, message=message
    )


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [("FAILED", 2, 2), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 143)],
)
def test_a_command_that_followed_a_job_ends_as_the_job_did(status: str, code: int | None, exit_code: int) -> None:
    with pytest.raises(Ended, match=f"job qray-x {status.lower()}") as ended:
        end_as(job(status, code))
    assert ended.value.exit_code == exit_code


def test_a_job_that_ray_ended_says_why() -> None:
    with pytest.raises(Ended, match="job qray-x failed: Job supervisor actor died"):
        end_as(job("FAILED", message="Job supervisor actor died\nmore"))


def test_a_job_that_succeeded_is_no_error() -> None:
    end_as(job("SUCCEEDED", 0))
