"""Two workers who share each batch train the model that one worker trains on all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.pair import pair
from support.shares import fitted, merged, model_of

from qray.model.training import load_checkpoint

Both = Callable[..., tuple[Any, Any]]
#: Sums of floats in another order, over six steps.
SAME: dict[str, float] = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    threads = torch.get_num_threads()
    with pair(str(tmp_path_factory.mktemp("pair") / "store")) as run:
        yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["idle", "frozen"])
def test_two_workers_on_parts_of_uneven_batches_equal_one_on_the_whole(kind: str, both: Both) -> None:
    alone, epochs = fitted(None, kind)
    before = model_of(kind).state_dict()
    moved = max(float((alone[name].float() - before[name].float()).abs().max()) for name in alone)
    assert moved > 100 * SAME["atol"], "nothing was learned that could differ"
    (first, found), (second, _) = both(fitted, kind)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, **SAME, msg=name)
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=0, msg=name)
    assert [e.loss for e in found] == pytest.approx([e.loss for e in epochs], rel=1e-4)
    assert [e.clips for e in found] == [e.clips for e in epochs]


def test_each_normalises_by_its_own_clips_on_a_cpu_and_the_statistics_of_the_first_are_kept(both: Both) -> None:
    (first, _), (second, _) = both(fitted, "batch norm")
    name = next(name for name in first if name.endswith("running_mean"))
    assert not torch.equal(first[name], fitted(None, "batch norm")[0][name])
    weights = [name for name in first if "running" not in name]
    assert all(torch.equal(first[name], second[name]) for name in weights)


def test_the_checkpoint_is_that_of_a_model_trained_alone_and_one_worker_holds_it(both: Both) -> None:
    (_, first), (_, second) = both(fitted, "batch norm")
    state = load_checkpoint(first[-1].checkpoint)
    assert state["model"].keys() == model_of("batch norm").state_dict().keys()
    model_of("batch norm").load_state_dict(state["model"])
    assert [len(result.checkpoint) for result in second] == [0, 0]


def test_a_fit_by_two_that_goes_on_from_a_checkpoint_equals_one_that_was_never_interrupted(both: Both) -> None:
    (whole, epochs), _ = both(fitted, "batch norm")
    (resumed, rest), _ = both(fitted, "batch norm", epochs[0].checkpoint)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert [e.loss for e in rest] == [e.loss for e in epochs[1:]]


def test_what_one_worker_finds_all_know(both: Both) -> None:
    assert both(merged) == ({0: "found by 0", 1: "found by 1"},) * 2
