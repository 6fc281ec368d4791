"""The loop that runs units: what one failure costs, what silence costs, what a kill costs, and who waits for whom."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.toys import Toy, counts, fails, never, run_toys, toy

from qray.errors import Lost, NotYet
from qray.graph.missing import impossible
from qray.graph.runner import RESTARTS
from qray.graph.store import Store
from qray.graph.unit import Graph, Resources, Unit

ALONE = Resources(exclusive=True)


def test_a_failure_costs_only_what_needs_it(tmp_path: Path) -> None:
    bad = toy("bad", fails)
    ran = run_toys(tmp_path, bad, toy("needs bad", lambda: 1, bad), toy("other"))
    assert ran.status == {"bad": "failed", "needs bad": "failed", "other": "ok"}
    assert ran.reason["needs bad"] == "ValueError: no luck"


@dataclass
class Late(Toy):
    """Work for a machine that comes at the third try."""

    tries: int = 0

    def start(self, unit: Unit, run: Any) -> Any:
        self.tries += 1
        if self.tries < 3:
            raise NotYet("no node has vnni")
        return super().start(unit, run)


@pytest.mark.parametrize("waits_s", [60.0, 0.0])
def test_a_unit_waits_for_a_machine_that_may_come_while_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits_s: float
) -> None:
    monkeypatch.setattr("qray.graph.runner.NOT_YET_S", waits_s)
    monkeypatch.setattr("qray.graph.runner.RETRY_S", 0.1)
    monkeypatch.setattr("qray.graph.runner.WAIT_S", 0.05)
    late = Unit("toy", "late", Late(), {"name": "late"})
    ran = run_toys(tmp_path, late, toy("evaluation", lambda: 1, late), toy("other"))
    came = waits_s > 0
    assert ran.status == {"late": "ok" if came else "failed", "evaluation": "ok" if came else "failed", "other": "ok"}
    assert "late waits: no node has vnni, but one may come" in ran.said
    assert ran.reason["late"] == (None if came else "no node has vnni, nor came one in 0 s")


def test_a_skip_is_passed_on_as_a_skip(tmp_path: Path) -> None:
    engine = toy("engine", lambda: "skip")
    ran = run_toys(tmp_path, engine, toy("evaluation", lambda: 1, engine))
    assert (set(ran.status.values()), ran.reason["evaluation"]) == ({"skipped"}, "no engine")


def test_every_item_of_work_that_yields_is_heard_and_the_last_is_its_value(tmp_path: Path) -> None:
    unit = toy("stream", counts)
    run_toys(tmp_path, unit)
    assert unit.task.heard_items == [0, 1, 2, 3]  # type: ignore[attr-defined]
    assert (Store(tmp_path).record(unit) or {})["value"] == 3


def lost_at_first(times: int, error: type[Exception] = Lost) -> Callable[[], int]:
    """Work whose process goes so many times; its value is how often it was started."""
    starts = count(1)

    def work() -> int:
        if (start := next(starts)) <= times:
            raise error("the process was killed")
        return start

    return work


def test_work_whose_process_went_is_started_again_and_costs_nobody_else_anything(tmp_path: Path) -> None:
    lost = toy("lost", lost_at_first(RESTARTS))
    ran = run_toys(tmp_path, lost, toy("needs lost", lambda: 1, lost))
    assert ran.status == {"lost": "ok", "needs lost": "ok"}
    assert (Store(tmp_path).record(lost) or {})["value"] == RESTARTS + 1
    assert ran.said.count("lost  toy lost, which starts again: the process was killed") == RESTARTS


def test_work_that_ends_its_process_each_time_fails_in_the_end(tmp_path: Path) -> None:
    ran = run_toys(tmp_path, toy("ends its process", lost_at_first(RESTARTS + 1)))
    assert (ran.status, ran.said.count("start toy")) == ({"ends its process": "failed"}, RESTARTS + 1)


def test_work_that_took_too_much_memory_beside_others_is_started_again_alone(tmp_path: Path) -> None:
    beside = threading.Semaphore(0)
    at_work: list[str] = []
    starts = count(1)

    def greedy() -> list[str]:
        if next(starts) == 1:
            raise MemoryError
        return list(at_work)

    def patient() -> None:
        at_work.append("patient")
        # Longer than the loop needs to start what may start.
        beside.acquire(timeout=1.5)
        at_work.remove("patient")

    unit = toy("greedy", greedy)
    assert set(run_toys(tmp_path, toy("patient", patient), unit).status.values()) == {"ok"}
    assert (Store(tmp_path).record(unit) or {})["value"] == []


def test_a_finished_unit_is_not_started_again(tmp_path: Path) -> None:
    run_toys(tmp_path, toy("once", lambda: 7))
    ran = run_toys(tmp_path, toy("once", fails))
    assert "start" not in ran.said


def test_a_unit_costs_the_same_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Unit] = []
    record = Store.record
    monkeypatch.setattr(Store, "record", lambda self, unit: (asked.append(unit), record(self, unit))[1])

    def records_read(n: int) -> int:
        asked.clear()
        builds = [toy(f"build {number}") for number in range(n)]
        ran = run_toys(
            tmp_path / str(n), *builds, *(toy(f"evaluate {build.name}", lambda: 1, build) for build in builds)
        )
        assert set(ran.status.values()) == {"ok"}
        return len(asked)

    few, many = records_read(20), records_read(200)
    assert many < 12 * few


def test_the_backend_is_told_how_many_units_there_are_of_each_kind_and_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qray.graph.runner.TELL_EVERY_S", 0.0)
    bad, skipped = toy("bad", fails), toy("skipped", lambda: "skip")
    units = [bad, skipped, toy("needs bad", lambda: 1, bad), toy("needs skipped", lambda: 1, skipped), toy("fine")]
    told = run_toys(tmp_path, *units, holders=1).told
    assert {sum(counts.values()) for counts in told} == {len(units)}
    assert told[0] == {("toy", "ready"): 2, ("toy", "running"): 1, ("toy", "waiting"): 2}
    assert told[-1] == {("toy", "ok"): 1, ("toy", "failed"): 2, ("toy", "skipped"): 2}


def test_units_of_a_later_call_are_planned_and_wait(tmp_path: Path) -> None:
    first, alone = toy("first"), toy("alone")
    told = run_toys(tmp_path, first, alone, wanted=[first], later=[alone]).told
    assert told[-1] == {("toy", "ok"): 1, ("toy", "waiting"): 1}


def test_silence_ends_in_a_diagnosis(tmp_path: Path) -> None:
    ran = run_toys(tmp_path, toy("silent", never, silence_s=0.01))
    assert (ran.status["silent"], ran.reason["silent"]) == ("failed", "nothing was heard for 0 s. 2 threads")


@pytest.mark.parametrize("holders", [1, 2, 4])
def test_as_many_run_at_once_as_may_hold_a_slot_and_one_alone_runs_alone(tmp_path: Path, holders: int) -> None:
    lock, together = threading.Lock(), threading.Barrier(holders, timeout=60)
    running: set[str] = set()
    seen: dict[str, int] = {}

    def work(name: str, meet: bool = True) -> None:
        with lock:
            running.add(name)
            seen[name] = len(running)
        if meet:
            together.wait()
        with lock:
            seen[name] = max(seen[name], len(running))
            running.remove(name)

    many = [toy(f"{n}", partial(work, f"{n}")) for n in range(8)]
    alone = toy("alone", partial(work, "alone", meet=False), resources=ALONE)
    assert set(run_toys(tmp_path, alone, *many, holders=holders).status.values()) == {"ok"}
    assert (seen.pop("alone"), max(seen.values())) == (1, holders)


def test_who_wants_many_slots_leaves_one_to_the_others(tmp_path: Path) -> None:
    met = threading.Barrier(2, timeout=20)
    greedy = toy("greedy", met.wait, resources=Resources(slots=9))
    assert set(run_toys(tmp_path, greedy, toy("other", met.wait)).status.values()) == {"ok"}


def test_who_takes_all_of_its_slots_or_none_waits_for_them_and_runs_alone_in_them(tmp_path: Path) -> None:
    at_once, most, lock = Counter[str](), list[int](), threading.Lock()

    def work(slots: int) -> None:
        with lock:
            at_once["slots"] += slots
            most.append(at_once["slots"])
        threading.Event().wait(0.05)
        with lock:
            at_once["slots"] -= slots

    whole = toy("whole", partial(work, 3), resources=Resources(slots=3, whole=True))
    others = [toy(f"{n}", partial(work, 1)) for n in range(4)]
    assert set(run_toys(tmp_path, others[0], whole, *others[1:], holders=3).status.values()) == {"ok"}
    assert max(most) == 3


#: Training, or evaluation of what needs one; the sweep, whose trials take one each; and workers of one training.
ON_A_GPU = {
    "training": Resources(gpu=True), "evaluation": Resources(gpu=True, on_gpu=True),
    "sweep": Resources(slots=4, inner_gpus=True), "workers": Resources(slots=2, whole=True, gpu=True),
}  # fmt: skip


@pytest.mark.parametrize(("one", "gpus"), [("training", 1), ("evaluation", 1), ("sweep", 1), ("workers", 2)])
def test_who_takes_the_last_gpu_has_others_wait_for_it(tmp_path: Path, one: str, gpus: int) -> None:
    running, most, lock = Counter[str](), list[int](), threading.Lock()

    def work() -> None:
        with lock:
            running["now"] += 1
            most.append(running["now"])
        threading.Event().wait(0.1)
        with lock:
            running["now"] -= 1

    other = "workers" if one == "workers" else "evaluation"
    units = [toy(name, work, resources=ON_A_GPU[kind]) for name, kind in (("one", one), ("other", other))]
    assert set(run_toys(tmp_path, *units, holders=8, gpus=gpus).status.values()) == {"ok"}
    assert max(most) == 1


def test_what_is_heard_when_it_is_polled_is_no_silence(tmp_path: Path) -> None:
    ran = run_toys(tmp_path, toy("polled", partial(threading.Event().wait, 2), silence_s=0.6, polled=True))
    assert ran.status == {"polled": "ok"}


def test_a_unit_that_is_not_through_is_started_again(tmp_path: Path) -> None:
    turns = iter("aab")
    unit = toy("rungs", lambda: next(turns), again="a")
    ran = run_toys(tmp_path, unit)
    assert (ran.said.count("start toy rungs"), (Store(tmp_path).record(unit) or {})["value"]) == (3, "b")


def test_units_of_one_key_are_done_once(tmp_path: Path) -> None:
    """Two variants with the same settings are one artifact."""
    done: list[int] = []
    twins = [Unit("toy", name, toy("", lambda: done.append(1)).task, {"same": 1}) for name in ("one", "two")]
    assert set(run_toys(tmp_path, *twins).status.values()) == {"ok"}
    assert done == [1]


def measured(out: Path, good: Any, bad: Any) -> tuple[str, str]:
    """Key and status of what is measured of two builds that have ended."""
    builds = (toy("good", good), toy("bad", bad))
    unit = toy("latency", lambda: 1, settled=builds)
    ran = run_toys(out, *builds, unit)
    return Store(out).key(unit), ran.status["latency"]


def test_what_waits_for_others_to_settle_is_of_those_that_finished(tmp_path: Path) -> None:
    first, status = measured(tmp_path, lambda: 1, fails)
    again, _ = measured(tmp_path, lambda: 1, fails)
    mended, _ = measured(tmp_path, lambda: 1, lambda: 1)
    assert (status, first == again, first != mended) == ("ok", True, True)


def test_what_a_machine_cannot_do_is_known_without_starting_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = toy("build")
    monkeypatch.setattr(build.task, "impossible", lambda: "no compiler")
    graph = Graph([build, toy("evaluation", lambda: 1, build), toy("other")])
    found = impossible(graph, Store(tmp_path))
    assert {unit.name: result.reason for unit, result in found.items()} == dict.fromkeys(
        ("build", "evaluation"), "no compiler"
    )


#: Graphs of eight units at most: whom each needs, of those before it, and which of them fail the first time.
GRAPHS = st.lists(st.tuples(st.sets(st.integers(0, 6)), st.booleans()), min_size=1, max_size=8)


def drawn(shape: list[tuple[set[int], bool]], done: Counter[str], broken: bool) -> list[Unit]:
    """Units of a drawn graph, which count what they have done."""
    units: list[Unit] = []
    for number, (needs, fails_first) in enumerate(shape):

        def work(name: str = f"{number}", breaks: bool = fails_first and broken) -> str:
            if breaks:
                fails()
            done[name] += 1
            return name

        units.append(toy(f"{number}", work, *(units[n] for n in needs if n < number)))
    return units


@given(GRAPHS)
@settings(max_examples=20, deadline=None)
def test_the_second_run_does_what_failed_and_what_needs_it_and_no_more(shape: list[tuple[set[int], bool]]) -> None:
    done: Counter[str] = Counter()
    with TemporaryDirectory() as out:
        first = run_toys(Path(out), *drawn(shape, done, broken=True))
        finished = {name for name, status in first.status.items() if status == "ok"}
        assert finished == set(done)
        second = run_toys(Path(out), *drawn(shape, done, broken=False))
    assert set(done.values()) == {1}
    assert set(second.status.values()) <= {"ok"}
    assert second.status.keys() >= {f"{n}" for n in range(len(shape))} - finished


@given(GRAPHS, st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_a_run_that_is_ended_at_any_moment_goes_on_with_what_was_finished(
    shape: list[tuple[set[int], bool]], moment: int
) -> None:
    done: Counter[str] = Counter()
    ends = 0

    def end() -> None:
        nonlocal ends
        ends += 1
        if ends == moment:
            raise KeyboardInterrupt

    with TemporaryDirectory() as out:
        try:
            run_toys(Path(out), *drawn(shape, done, broken=False), on_end=end)
        except KeyboardInterrupt:
            kept = {path.name for path in (Path(out) / "units").iterdir()}
            assert len(kept) == moment
        finished = {unit.name for unit in drawn(shape, Counter(), broken=False) if Store(Path(out)).finished(unit)}
        before = Counter(done)
        run_toys(Path(out), *drawn(shape, done, broken=False))
        again = {name for name in done if done[name] > before[name]}
        assert not again & finished, "a finished unit was done again"
        assert all(Store(Path(out)).finished(unit) for unit in drawn(shape, Counter(), broken=False))


@dataclass
class Asks(Toy):
    """Has others run, and its record says how they ended."""

    others: tuple[Unit, ...] = ()

    def finish(self, unit: Unit, run: Any, value: Any) -> dict[str, Any] | None:
        self.asked = tuple(other for other in self.others if run.runner.ended(other) is None)
        for other in self.asked:
            run.runner.add(other)
        return None if self.asked else {other.name: run.runner.ended(other).status for other in self.others}


def test_a_unit_goes_on_when_what_it_has_asked_for_has_ended_well_or_not(tmp_path: Path) -> None:
    others = (toy("good"), toy("bad", fails))
    unit = Unit("toy", "asks", Asks(others=others), {"name": "asks"})
    ran = run_toys(tmp_path, unit, toy("after", lambda: 1, unit))
    assert ran.status == {"asks": "ok", "after": "ok"}
    record = Store(tmp_path).record(unit) or {}
    assert (record["good"], record["bad"]) == ("ok", "failed")
    assert ran.said.count("start toy asks") == 2


def test_what_was_asked_for_in_a_run_that_was_killed_is_not_done_again(tmp_path: Path) -> None:
    run_toys(tmp_path, toy("good"))
    unit = Unit("toy", "asks", Asks(others=(toy("good", fails),)), {"name": "asks"})
    assert run_toys(tmp_path, unit).status == {"asks": "ok"}
