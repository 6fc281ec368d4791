"""Which mixes are tried: none kept first, then as few as hold, in the order of harm for cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qray.units.prefixes import Kept, Ranked, Tried, next_round, ranking

BUDGET = 40


def record(**layers: tuple[float | None, int]) -> dict[str, Any]:
    """A sensitivity record of layers by name: SQNR alone in dB, and multiply-accumulates."""
    return {"layers": [{"layer": name, "macs": macs, "alone": {"sqnr_db": db}} for name, (db, macs) in layers.items()]}


def chain(harms: list[float]) -> list[Ranked]:
    """Layers of equal cost, the most harmful first."""
    return [Ranked(f"conv{at}", harm, 1.0) for at, harm in enumerate(sorted(harms, reverse=True))]


def search(layers: list[Ranked], judge: Callable[[Kept], Tried], budget: int = BUDGET) -> list[Tried]:
    """Every mix that was tried, in order."""
    tried: list[Tried] = []
    while kept := next_round(layers, tried, budget):
        tried += [judge(each) for each in kept]
    return tried


def additive(layers: list[Ranked], allowed: float) -> Callable[[Kept], Tried]:
    """Whether a mix holds where errors add up exactly: the excess is their root over that of what is allowed."""

    def judge(kept: Kept) -> Tried:
        noise = sum(layer.harm for layer in layers if layer.name not in kept)
        return Tried(kept, noise <= allowed, math.sqrt(noise / allowed))

    return judge


def least(layers: list[Ranked], judge: Callable[[Kept], Tried]) -> int | None:
    """How many of the first layers it takes, found by trying all."""
    names = [layer.name for layer in layers]
    return next((n for n in range(len(names)) if judge(tuple(names[:n])).holds), None)


def test_layers_come_by_harm_for_their_cost() -> None:
    found = ranking(record(cheap=(20.0, 100), harmful=(10.0, 1000), costly=(20.0, 10_000)), False)
    assert [layer.name for layer in found] == ["harmful", "cheap", "costly"]


def test_a_layer_of_next_to_no_cost_and_next_to_no_harm_does_not_come_first() -> None:
    found = ranking(record(tiny=(40.0, 1), harmful=(20.0, 10_000)), False)
    assert [layer.name for layer in found] == ["harmful", "tiny"]


def test_what_multiplies_nothing_is_kept_where_the_engine_can() -> None:
    layers = record(conv=(20.0, 10), add=(10.0, 0))
    assert [layer.name for layer in ranking(layers, unweighted=False)] == ["conv"]
    assert [layer.name for layer in ranking(layers, unweighted=True)] == ["add", "conv"]


def test_plain_quantization_that_holds_is_one_evaluation() -> None:
    layers = chain([1.0, 2.0, 3.0])
    assert [one.kept for one in search(layers, additive(layers, 6.0))] == [()]


@given(st.lists(st.floats(1e-3, 10), min_size=2, max_size=60), st.floats(0.01, 0.99))
def test_the_least_number_of_first_layers_that_holds_is_found(harms: list[float], share: float) -> None:
    layers = chain(harms)
    judge = additive(layers, share * sum(harms))
    holding = [len(one.kept) for one in search(layers, judge) if one.holds]
    assert min(holding, default=None) == least(layers, judge)


@given(st.lists(st.floats(1e-3, 10), min_size=2, max_size=60), st.floats(0.01, 0.99))
def test_where_errors_add_up_a_few_evaluations_do(harms: list[float], share: float) -> None:
    layers = chain(harms)
    assert len(search(layers, additive(layers, share * sum(harms)))) <= 2 + 2 * math.log(len(layers), 2)


@given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(1, 20))
def test_whatever_holds_nothing_is_tried_twice_and_no_more_than_may_be(held: list[bool], budget: int) -> None:
    layers = chain([1.0] * len(held))
    tried = search(layers, lambda kept: Tried(kept, held[len(kept)], None), budget)
    assert len({one.kept for one in tried}) == len(tried) <= budget


def test_at_least_one_layer_stays_in_int8() -> None:
    layers = chain([1.0, 2.0, 3.0])
    assert max(len(one.kept) for one in search(layers, lambda kept: Tried(kept, False, 9.0))) == 2


def test_what_harms_less_than_the_last_that_is_needed_is_tried_without() -> None:
    """A small layer comes before a large one that harms more: for its cost. Then the large one alone may do."""
    layers = [Ranked("small", 1.0, 0.01), Ranked("large", 5.0, 1.0), Ranked("rest", 1.0, 1.0)]
    tried = search(layers, additive(layers, 2.0))
    assert [one.kept for one in tried if one.holds] == [("small", "large"), ("large",)]


def test_a_search_goes_on_from_what_was_tried() -> None:
    layers = chain([float(n) for n in range(1, 21)])
    judge = additive(layers, 40.0)
    whole = search(layers, judge)
    for done in range(1, len(whole)):
        rest = next_round(layers, whole[:done], BUDGET)
        assert not {one.kept for one in whole[:done]}.intersection(rest)
