"""What a mean hides: runs doctored in ways that keep the mean non-inferior are refused, and honest ones are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.doctored_runs import (
    FEW,
    Change,
    bfloat16,
    both,
    clamped,
    doctored_run,
    echo,
    heavy,
    in_steps,
    noise,
    noisier,
    openvino_as_it_was,
    shifted,
    shuffled,
)
from support.evidence_runs import make_run

from qray.answers.bounds import Bounds
from qray.answers.pick import Choice, choose
from qray.judge.comparison import Comparison, compare
from qray.judge.guardrails import Guardrail, guard
from qray.judge.judge import read_evidence
from qray.judge.places import classes
from qray.study_verdict import Verdict

DOCTORED: dict[str, Change] = {
    "three clips clamped below": clamped(3, 0),
    "three clips clamped above": clamped(0, 3),
    "two clips clamped, no noise": clamped(2, 0, 0.0),
    "clamped at both ends": clamped(8, 3),
    "clamped, 4-bit noise": clamped(4, 4, 1.5),
    "clamped in bfloat16": both(bfloat16(0.0), clamped(9, 0, 0.0)),
    "the lowest class shifted": shifted(0, 35, 3.0),
    "the lowest class shifted down": shifted(0, 35, -4.0),
    "the second class shifted": shifted(35, 40, 2.5),
    "the highest class shifted": shifted(50, 100, 2.0),
    "the lowest class shifted, 4-bit noise": shifted(0, 35, 6.0, 1.5),
    "the lowest class noisy": noisier(0, 35, 4.0),
    "the low end shuffled": shuffled(0.05, "low"),
    "the high end shuffled": shuffled(0.05, "high"),
    "both ends shuffled": shuffled(0.04, "both"),
    "an end shuffled, 4-bit noise": shuffled(0.07, "low", 1.5),
    "clamped and shifted": both(clamped(4, 0), shifted(50, 100, 1.6, 0.0)),
    "shuffled and clamped": both(shuffled(0.04, "low"), clamped(0, 3, 0.0)),
    "few levels": in_steps(2.0),
}
HONEST: dict[str, Change] = {
    "8 bits": noise(0.2),
    "8 bits, coarser": noise(0.6),
    "4 bits": noise(1.5),
    "the same engine": noise(1e-6),
    "FP32 itself": noise(0.0),
    "heavy tails": heavy(0.3),
    "bfloat16": bfloat16(0.0),
    "bfloat16 and noise": bfloat16(0.3),
}


def broken(out: Path, bounds: Bounds | None = None) -> str:
    """Why ptq-openvino is out, or nothing where it is shipped."""
    choice = choose(read_evidence(out), bounds)
    return "" if choice.picked else next(c.out or "" for c in choice.others if c.name == "ptq-openvino")


def of(change: Change, clips: int = 300, seed: int = 0, settings: Verdict | None = None) -> dict[str, Guardrail]:
    """The guardrails of a change, by name."""
    rng = np.random.default_rng(seed)
    target, reference = echo(clips, rng)
    found = guard(target, change(target, reference, rng), reference, settings or Verdict())
    return {one.name: one for one in found}


def study_of(change: Change, clips: int = 300, scale: float = 1.0, **settings: Any) -> Comparison:
    """FP32 against what `change` makes of it, in units of `scale`."""
    rng = np.random.default_rng(0)
    target, reference = echo(clips, rng)
    verdict = Verdict(**{"margin": scale, "bootstrap": 1000, **settings})
    return compare(target * scale, change(target, reference, rng) * scale, reference * scale, verdict)


@pytest.mark.parametrize("name", DOCTORED)
def test_a_guardrail_refuses_what_a_mean_lets_pass(name: str) -> None:
    assert study_of(DOCTORED[name]).refused


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_variant_is_not_refused(name: str) -> None:
    found = study_of(HONEST[name])
    assert (found.verdict, found.broken) == ("non-inferior", ())


@pytest.mark.parametrize("clips", [30, 60])
@pytest.mark.parametrize("name", [name for name in HONEST if name != "4 bits"])
def test_an_honest_variant_on_few_clips_is_not_refused(name: str, clips: int) -> None:
    assert study_of(HONEST[name], clips).broken == ()


@pytest.mark.parametrize("scale", [0.02 / 12, 3000 / 12], ids=["millimetres", "litres"])
@pytest.mark.parametrize(
    ("change", "refused"), [(noise(0.6), False), (clamped(3, 0), True), (shuffled(0.1, "low"), True)],
    ids=["honest", "clamped", "shuffled"],
)  # fmt: skip
def test_the_defaults_fit_any_unit(scale: float, change: Change, refused: bool) -> None:
    assert bool(study_of(change, scale=scale, thresholds=()).broken) is refused


@pytest.mark.parametrize("name", ["clamped at both ends", "the lowest class shifted", "both ends shuffled"])
def test_a_doctored_run_is_not_shipped(tmp_path: Path, name: str) -> None:
    assert "not to be shipped, though its mean is non-inferior" in broken(doctored_run(tmp_path, DOCTORED[name]))


def test_an_honest_run_is_shipped(tmp_path: Path) -> None:
    assert broken(doctored_run(tmp_path, noise(0.6))) == ""


def test_the_run_that_shipped_a_clamped_output_is_refused(tmp_path: Path) -> None:
    words = broken(openvino_as_it_was(tmp_path))
    assert "the lowest prediction, 25.26, is that of 8 clips, for which FP32 says 15.8 to 25" in words
    assert "the highest prediction, 71.17, is that of 3 clips, for which FP32 says 71.9 to 85" in words


def test_its_mean_was_non_inferior(tmp_path: Path) -> None:
    compared = next(v.comparison for v in read_evidence(openvino_as_it_was(tmp_path)).variants if v.comparison)
    assert compared.verdict == "non-inferior"


def test_a_margin_given_to_pick_switches_no_guardrail_off(tmp_path: Path) -> None:
    assert "not to be shipped" in broken(doctored_run(tmp_path, clamped(3, 0)), Bounds(margin=50.0))


def test_a_limit_that_the_study_declares_is_the_one_that_holds(tmp_path: Path) -> None:
    assert broken(doctored_run(tmp_path, clamped(3, 0), guardrails={"tied": 3})) == ""


def test_ties_that_fp32_has_too_are_no_saturation() -> None:
    rng = np.random.default_rng(0)
    target, reference = echo(300, rng)
    reference = np.clip(reference, 30, 80)
    found = guard(target, np.clip(reference + 0.2, 30.2, 80), reference, Verdict())
    assert [one.name for one in found if one.ok is False] == []


@pytest.mark.parametrize("thresholds", [(), (35.0, 40.0, 45.0, 50.0), (-5.0,), (200.0,)], ids=str)
def test_every_clip_is_looked_at_whatever_the_thresholds(thresholds: tuple[float, ...]) -> None:
    found = of(shifted(0, 47, 3.0), settings=Verdict(thresholds=thresholds))
    assert found["class_shift"].ok is False


def test_a_class_of_few_clips_joins_its_neighbour() -> None:
    target = np.concatenate([np.full(4, 32.0), np.full(7, 37.0), np.full(4, 42.0), np.full(20, 60.0)])
    assert [int(group.clips.sum()) for group in classes(target, Verdict())] == [11, 24]


def test_what_few_clips_cannot_show_is_not_settled() -> None:
    found = of(noise(0.2), 30)
    assert (found["moved_share"].ok, found["tail"].ok) == (None, None)


def test_a_class_that_became_better_by_its_shift_is_not_held_against_it() -> None:
    rng = np.random.default_rng(0)
    target, good = echo(300, rng)
    reference = np.where(target < 40, good + 6, good)
    found = {one.name: one for one in guard(target, good, reference, Verdict(thresholds=(40.0,)))}
    assert (found["class_shift"].ok, found["worst_class"].ok) == (None, True)


def test_moved_is_five_margins_where_the_study_does_not_say() -> None:
    assert (Verdict(margin=0.02).moved, Verdict(margin=0.02, moved=1.0).moved) == (0.1, 1.0)


def test_the_table_says_what_pick_says(tmp_path: Path) -> None:
    change = {"ptq-openvino": {"delta": 0.3, "sd": 0.1}}
    variant = read_evidence(make_run(tmp_path, variants=FEW, change=change)).variants[1]
    own, found = variant.row, variant.comparison
    assert found is not None
    by_name = {one.name: one for one in found.guardrails}
    assert own.worst_class_delta == by_name["worst_class"].value
    assert (own.shippable, own.guardrails) == (not found.broken, None)


def test_fp32_itself_and_the_controls_are_neither_to_be_shipped_nor_not(tmp_path: Path) -> None:
    shippable = {row.variant: row.shippable for row in read_evidence(make_run(tmp_path)).rows}
    assert [shippable[name] for name in ("fp32", "finetune", "mean-predictor")] == [None] * 3


def test_picks_sentence_holds_the_guardrails(tmp_path: Path) -> None:
    from qray.words.show_answers import choice_json

    content = json.loads(choice_json(choose(read_evidence(doctored_run(tmp_path, noise(0.2))))))
    assert {one["name"]: one["ok"] for one in content["picked"]["guardrails"]}["tied_low"] is True


def test_what_few_clips_leave_open_is_a_note_of_the_choice(tmp_path: Path) -> None:
    choice: Choice = choose(read_evidence(doctored_run(tmp_path, noise(0.2), 40)))
    assert any("too few clips to show under 5.0%" in note for note in choice.notes)
