"""Two runs compared: what is a regression, what is none, and what cannot be said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.evidence_runs import VARIANTS, make_run

from qray.answers.diff import RunDiff, VariantDiff, diff_runs
from qray.judge.evidence import Evidence
from qray.judge.judge import read_evidence

#: Enough to tell, and quick to read.
FEW = {name: VARIANTS[name] for name in ("fp32", "bf16-openvino", "dynamic", "ptq-openvino", "ptq-inductor")}
Make = Callable[..., Evidence]


@pytest.fixture
def run(tmp_path: Path) -> Make:
    def make(name: str, **settings: Any) -> Evidence:
        return read_evidence(make_run(tmp_path / name, **({"variants": FEW} | settings)))

    return make


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return read_evidence(make_run(tmp_path_factory.mktemp("old"), variants=FEW))


def variant(diff: RunDiff, name: str) -> VariantDiff:
    (found,) = [v for v in diff.variants if v.name == name]
    return found


def test_a_run_is_no_regression_of_itself(old: Evidence) -> None:
    assert diff_runs(old, old).regressions == ()


def test_a_run_has_changed_nothing_of_itself(old: Evidence) -> None:
    diff = diff_runs(old, old)
    assert (diff.study, diff.versions, diff.host) == ((), (), ())


def test_variants_built_with_another_version_are_no_secret(old: Evidence) -> None:
    first, second, *others = old.variants
    rebuilt = replace(second, rows=(replace(second.row, versions='{"torch": "2.13.0"}'),))
    diff = diff_runs(old, replace(old, variants=(first, rebuilt, *others)))
    assert [(c.key, c.a, c.b) for c in diff.versions] == [("torch", "2.14.1", "2.13.0, 2.14.1")]


def test_a_verdict_that_got_worse_is_a_regression(old: Evidence, run: Make) -> None:
    diff = diff_runs(old, run("b", change={"ptq-openvino": {"delta": 0.95}}), tolerance=5.0)
    assert diff.regressions[0] == "ptq-openvino: verdict went from non-inferior to inconclusive at A's margin"


def test_a_verdict_that_got_better_is_none(old: Evidence, run: Make) -> None:
    assert diff_runs(old, run("b", change={"dynamic": {"delta": 0.2}})).regressions == ()


def test_a_verdict_that_got_better_has_flipped(old: Evidence, run: Make) -> None:
    assert variant(diff_runs(old, run("b", change={"dynamic": {"delta": 0.2}})), "dynamic").flipped


def test_a_looser_margin_does_not_hide_a_verdict_that_got_worse(old: Evidence, run: Make) -> None:
    worse = run("b", change={"ptq-openvino": {"delta": 1.5}}, verdict={"margin": 3.0})
    assert any("inferior at A's margin" in words for words in diff_runs(old, worse, tolerance=5.0).regressions)


def test_a_stricter_margin_alone_is_no_regression(old: Evidence, run: Make) -> None:
    assert diff_runs(old, run("b", verdict={"margin": 0.1})).regressions == ()


def test_a_margin_that_changed_is_named(old: Evidence, run: Make) -> None:
    changes = {c.key: (c.a, c.b) for c in diff_runs(old, run("b", verdict={"margin": 0.1})).study}
    assert changes == {"verdict.margin": (1.0, 0.1), "verdict.moved": (5.0, 0.5)}


def test_an_error_that_grew_is_a_regression_though_the_verdict_stands(old: Evidence, run: Make) -> None:
    diff = diff_runs(old, run("b", change={"ptq-openvino": {"delta": 0.3}}))
    assert [words.partition(":")[0] for words in diff.regressions] == ["ptq-openvino"]


def test_what_is_tolerated_is_no_regression(old: Evidence, run: Make) -> None:
    assert diff_runs(old, run("b", change={"ptq-openvino": {"delta": 0.1}})).regressions == ()


def test_the_tolerance_can_be_given(old: Evidence, run: Make) -> None:
    assert diff_runs(old, run("b", change={"ptq-openvino": {"delta": 0.1}}), tolerance=0.0).regressions != ()


def test_a_worse_fp32_is_a_regression_though_every_verdict_stands(old: Evidence, run: Make) -> None:
    diff = diff_runs(old, run("b", change={"fp32": {"delta": 0.5, "sd": 0.2}}))
    assert any(words.startswith("fp32:") for words in diff.regressions)


def test_growth_that_chance_explains_is_no_regression(run: Make) -> None:
    a, b = (run(name, change={"dynamic": {"delta": delta, "sd": 1.9}}, clips=30, seed=seed)
            for name, delta, seed in (("a", 0.2, 0), ("b", 0.5, 1)))  # fmt: skip
    found = variant(diff_runs(a, b, tolerance=0.0), "dynamic")
    assert found.mae is not None
    assert found.mae.low is not None
    assert found.mae.low < 0
    assert not any("MAE grew" in words for words in found.regressions)


def test_a_variant_that_is_skipped_now_is_lost(old: Evidence, run: Make) -> None:
    gone = {"bf16-openvino": {"status": "skipped", "reason": "no such engine"}}
    assert "bf16-openvino: lost: skipped in B (no such engine)" in diff_runs(old, run("b", change=gone)).regressions


def test_a_variant_that_is_left_out_is_lost(old: Evidence, run: Make) -> None:
    few = {name: made for name, made in FEW.items() if name != "bf16-openvino"}
    assert diff_runs(old, run("b", variants=few)).regressions == ("bf16-openvino: lost: it is not in B",)


def test_a_variant_that_is_new_is_no_regression(old: Evidence, run: Make) -> None:
    more = FEW | {"fp32-openvino": VARIANTS["fp32-openvino"]}
    assert diff_runs(old, run("b", variants=more)).regressions == ()


def test_a_variant_added_in_between_shifts_no_other_ones_keys(old: Evidence, run: Make) -> None:
    more = {"fp32": FEW["fp32"], "fp32-openvino": VARIANTS["fp32-openvino"]} | FEW
    keys = {change.key for change in diff_runs(old, run("b", variants=more)).study}
    assert {key.split(".")[1] for key in keys} == {"fp32-openvino"}


@pytest.mark.parametrize(("size", "regressed"), [(900_000, False), (920_000, True)])
def test_size_may_grow_by_five_per_cent(old: Evidence, run: Make, size: int, regressed: bool) -> None:
    diff = diff_runs(old, run("b", change={"ptq-openvino": {"size": size}}))
    assert any("size grew" in words for words in diff.regressions) is regressed


def test_latency_is_never_a_regression(old: Evidence, run: Make) -> None:
    assert diff_runs(old, run("b", change={"ptq-openvino": {"ms": 15.0}})).regressions == ()


def test_latency_on_one_host_is_given_as_an_indication(old: Evidence, run: Make) -> None:
    diff = diff_runs(old, run("b", change={"ptq-openvino": {"ms": 15.0}}))
    assert any("indication" in note for note in diff.notes)


def test_the_same_clips_are_compared_in_pairs(old: Evidence, run: Make) -> None:
    found = variant(diff_runs(old, run("b", seed=1)), "ptq-openvino")
    assert (found.paired, found.n_common) == (True, 200)


def test_other_clips_are_compared_unpaired(old: Evidence, run: Make) -> None:
    found = variant(diff_runs(old, run("b", clip_names=[f"other-{i}" for i in range(200)])), "ptq-openvino")
    assert (found.paired, found.n_common) == (False, 0)


def test_unpaired_intervals_are_wider(old: Evidence, run: Make) -> None:
    change = {"ptq-openvino": {"delta": 0.3}}
    widths = []
    for name, names in (("same", None), ("other", [f"other-{i}" for i in range(200)])):
        found = variant(diff_runs(old, run(name, change=change, clip_names=names)), "ptq-openvino").mae
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        widths.append(found.high - found.low)
    assert widths[1] > 2 * widths[0]


def test_that_clips_are_others_is_said(old: Evidence, run: Make) -> None:
    diff = diff_runs(old, run("b", clip_names=[f"other-{i}" for i in range(200)]))
    assert any("did not predict the same clips" in note for note in diff.notes)


def test_without_fp32_verdicts_are_lost(old: Evidence, run: Make) -> None:
    diff = diff_runs(old, run("b", without=["fp32"]))
    assert "ptq-openvino: verdict went from non-inferior to none at A's margin" in diff.regressions


def test_predictions_that_are_not_finite_any_more_are_a_regression(old: Evidence, run: Make) -> None:
    assert any(w.startswith("ptq-openvino:") for w in diff_runs(old, run("b", nan={"ptq-openvino": 3})).regressions)


def test_one_clip_carries_no_growth_of_error(run: Make) -> None:
    a, b = (run(name, clips=1, change={"ptq-openvino": {"delta": delta}}) for name, delta in (("a", 0.0), ("b", 2.0)))
    assert diff_runs(a, b).regressions == ()


def test_one_clip_is_said_to_be_too_few(run: Make) -> None:
    a = run("a", clips=1)
    assert "ptq-openvino: too few clips for an interval of the error's growth" in diff_runs(a, a).unchecked


def test_predictions_that_a_lost_are_said_to_be_unchecked(run: Make, old: Evidence) -> None:
    a = run("a")
    shutil.rmtree(a.out / "predictions")
    diff = diff_runs(read_evidence(a.out), old)
    assert any(words.startswith("ptq-openvino: failed in A (no accuracy: ") for words in diff.unchecked)


def test_predictions_that_b_lost_are_a_regression(run: Make, old: Evidence) -> None:
    b = run("b")
    shutil.rmtree(b.out / "predictions")
    regressions = diff_runs(old, read_evidence(b.out)).regressions
    assert any(words.startswith("ptq-openvino: lost: failed in B (no accuracy: ") for words in regressions)


def test_builds_that_b_lost_are_a_regression(run: Make, old: Evidence) -> None:
    b = run("b")
    for record in (b.out / "units").glob("build-*.json"):
        record.unlink()
    regressions = diff_runs(old, read_evidence(b.out)).regressions
    assert "ptq-openvino: lost: failed in B (not finished; run the same command again)" in regressions


def test_a_run_compared_with_itself_leaves_nothing_unchecked(old: Evidence) -> None:
    assert diff_runs(old, old).unchecked == ()
