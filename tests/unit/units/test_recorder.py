"""What is recorded while units run costs them little, however much there is of it."""

from __future__ import annotations

import pytest

from qray.units.recorder import SHARE, Sparing


@pytest.mark.parametrize("took", [0.001, 1.0, 30.0])
def test_many_who_ask_cost_a_tenth_of_the_time_and_none_is_forgotten(
    took: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, asked, seen = 0.0, 0, list[tuple[float, int]]()
    monkeypatch.setattr("qray.units.recorder.time.monotonic", lambda: now)

    def call() -> None:
        nonlocal now
        now += took
        seen.append((now, asked))

    sparing = Sparing(call)
    for _ in range(1000):
        asked += 1
        sparing.ask()
        sparing.grant()
        now += 0.5
    assert seen[0][1] == 1, "the first need not wait"
    assert len(seen) * took <= SHARE * now + took
    assert len(seen) >= min(1000, SHARE * now / took / 2)
    now += took / SHARE
    sparing.grant()
    assert seen[-1][1] == 1000
    sparing.grant()
    assert len({count for _, count in seen}) == len(seen), "nobody had asked again"
