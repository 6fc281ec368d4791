"""Ray's start where a machine is unkind to it: what only a real start can show."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.runs import environment, qray


def doctor(**changes: str) -> dict[str, dict[str, str]]:
    """What `qray doctor` finds, by topic."""
    done = qray("doctor", "--json", env=environment(**changes))
    return {finding["topic"]: finding for finding in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def unkind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The doctor's findings on one core, with a long TMPDIR that has a blank, no home, and an empty RAY_ADDRESS."""
    folder = tmp_path_factory.mktemp("unkind") / f"a {'b' * 80}"
    folder.mkdir()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        return doctor(TMPDIR=str(folder), HOME="/dev/null", RAY_ADDRESS=" \r\n")
    finally:
        os.sched_setaffinity(0, cores)


def test_ray_starts_with_short_sockets_and_a_token_elsewhere(unkind: dict[str, dict[str, str]]) -> None:
    assert unkind["Ray"]["state"] == "ok", unkind["Ray"]


def test_the_token_that_was_made_is_named(unkind: dict[str, dict[str, str]]) -> None:
    assert "RAY_AUTH_TOKEN_PATH=" in unkind["Ray"]["detail"]


def test_one_core_is_one_cpu_on_every_page(unkind: dict[str, dict[str, str]]) -> None:
    assert "1 usable core" in unkind["CPU"]["detail"]
    assert ": 1 CPUs" in unkind["Ray"]["detail"]


def test_nothing_is_broken_by_any_of_it(unkind: dict[str, dict[str, str]]) -> None:
    assert [finding for finding in unkind.values() if finding["state"] == "broken"] == []


def test_a_dead_address_ends_a_run_in_seconds_with_a_sentence(tiny_dataset: Path, tmp_path: Path) -> None:
    done = qray("run", "train", "--data", tiny_dataset, "--out", tmp_path, env=environment(RAY_ADDRESS="127.0.0.1:9 "))
    assert (done.code, "127.0.0.1:9, but no Ray head answers" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr
