"""Several seeds of one study: what holds over retraining, and runs that cannot be put together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.evidence_runs import Made, make_run

from qray.answers.seeds import OverSeeds, SeedEvidence, over_seeds
from qray.errors import QrayError, UsageError
from qray.judge.judge import read_evidence
from qray.judge.statistics import bootstrap_means, interval
from qray.judge.two_level import two_level
from qray.questions import show_seeds

#: As evidence_runs has them; "shaky" is good with seed 0 and bad with the others.
VARIANTS = {
    "fp32": Made("fp32", "eager"),
    "ptq-openvino": Made("ptq", "openvino", 0.05, 0.5),
    "ptq-onnxruntime": Made("ptq", "onnxruntime", 2.5, 1.0),
    "shaky": Made("ptq", "inductor", 0.1, 0.5),
}


def run(folder: Path, seed: int, **more: object) -> Path:
    change = {"shaky": {"delta": 0.1 if seed == 0 else 1.6}}
    return make_run(folder / f"{seed}", variants=VARIANTS, change=change, seed=seed, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def outs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("seeds")
    return [run(folder, seed) for seed in (0, 1, 2)]


@pytest.fixture(scope="module")
def found(outs: list[Path]) -> SeedEvidence:
    return over_seeds([read_evidence(out) for out in outs])


def of(found: SeedEvidence, name: str) -> OverSeeds:
    return next(v for v in found.variants if v.name == name)


@pytest.mark.parametrize(
    ("name", "word"),
    [("ptq-openvino", "non-inferior"), ("ptq-onnxruntime", "inferior"), ("shaky", "inconclusive"), ("fp32", None)],
)
def test_the_verdict_over_seeds_is_the_known_one(found: SeedEvidence, name: str, word: str | None) -> None:
    assert of(found, name).verdict == word


def test_a_variant_that_is_non_inferior_with_one_seed_may_not_be_over_seeds(outs: list[Path]) -> None:
    alone = next(v for v in read_evidence(outs[0]).variants if v.name == "shaky").comparison
    assert alone is not None
    assert alone.verdict == "non-inferior"


def test_the_mean_is_over_seeds_and_clips(found: SeedEvidence) -> None:
    assert (found.seeds, of(found, "shaky").n) == ((0, 1, 2), 200)
    assert of(found, "shaky").delta == pytest.approx((0.1 + 1.6 + 1.6) / 3)


def test_the_spread_over_seeds_is_that_of_their_differences(found: SeedEvidence) -> None:
    assert of(found, "shaky").delta_sd == pytest.approx(np.std([0.1, 1.6, 1.6], ddof=1))


def test_a_whole_study_has_nothing_to_excuse(found: SeedEvidence) -> None:
    assert found.notes == ()


def test_the_same_runs_give_the_same_intervals(outs: list[Path], found: SeedEvidence) -> None:
    assert over_seeds([read_evidence(out) for out in outs]) == found


def test_a_variant_that_too_few_seeds_have_has_an_interval_and_no_verdict(tmp_path: Path) -> None:
    runs = [run(tmp_path, 0), run(tmp_path, 1), run(tmp_path, 2, without=["ptq-openvino"])]
    found = over_seeds([read_evidence(out) for out in runs])
    variant = of(found, "ptq-openvino")
    assert (variant.seeds, variant.verdict, variant.delta_high is None) == ((0, 1), None, False)
    assert found.notes == (
        "ptq-openvino: nothing from seed 2",
        "ptq-openvino: no verdict over 2 seeds: 3 or more are needed",
    )


def test_a_seed_without_a_verdict_takes_that_over_seeds_away(tmp_path: Path) -> None:
    runs = [run(tmp_path, 0), run(tmp_path, 1), run(tmp_path, 2, constant=["fp32"])]
    found = over_seeds([read_evidence(out) for out in runs])
    assert {v.verdict for v in found.variants} == {None}
    assert any("ptq-openvino: no verdict: FP32 predicts 50" in note for note in found.notes)


def test_clips_that_only_some_seeds_have_are_left_out(tmp_path: Path) -> None:
    names = [f"clip-{i:03d}" for i in range(199)] + ["another"]
    found = over_seeds([read_evidence(run(tmp_path, 0)), read_evidence(run(tmp_path, 1, clip_names=names))])
    assert of(found, "ptq-openvino").n == 199
    assert "ptq-openvino: 199 of 200 clips are common to its runs" in found.notes


def copied(outs: list[Path], folder: Path, edit: Callable[[str], str]) -> list[Path]:
    second = Path(shutil.copytree(outs[1], folder / "other"))
    (second / "study.yaml").write_text(edit((second / "study.yaml").read_text()))
    return [outs[0], second]


def test_runs_that_differ_in_more_than_the_seed_are_named(outs: list[Path], tmp_path: Path) -> None:
    runs = copied(outs, tmp_path, lambda text: text.replace("epochs: 12", "epochs: 3"))
    notes = over_seeds([read_evidence(out) for out in runs]).notes
    assert any(note.endswith("in more than its seed: training") for note in notes)


def test_the_same_clips_in_another_folder_are_no_difference(tmp_path: Path) -> None:
    runs = [run(tmp_path, 0, data_dir=tmp_path / "here"), run(tmp_path, 1, data_dir=tmp_path / "there")]
    notes = over_seeds([read_evidence(out) for out in runs]).notes
    assert not [note for note in notes if "differs" in note]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text.replace("\nseed: 1\n", "\nseed: 0\n"), "its seed 0 is that of"),
        (lambda text: text.replace("  margin: 1.0", "  margin: 0.5"), "a verdict takes one margin"),
        (lambda text: "", "study.yaml"),
    ],
)
def test_runs_that_cannot_be_put_together_are_refused(
    outs: list[Path], tmp_path: Path, edit: Callable[[str], str], words: str
) -> None:
    with pytest.raises(QrayError, match=words):
        over_seeds([read_evidence(out) for out in copied(outs, tmp_path, edit)])


def test_runs_on_other_clips_are_refused(tmp_path: Path) -> None:
    other = run(tmp_path, 1, clip_names=[f"other-{i}" for i in range(200)])
    with pytest.raises(QrayError, match="share no TEST clip"):
        over_seeds([read_evidence(run(tmp_path, 0)), read_evidence(other)])


def test_the_same_name_with_another_target_is_no_common_clip(outs: list[Path]) -> None:
    runs = [read_evidence(out) for out in outs[:2]]
    moved = [v if v.predicted is None else replace(v, predicted=v.predicted.copy()) for v in runs[1].variants]
    for variant in moved:
        if variant.predicted is not None:
            variant.predicted["target"] += 1
    with pytest.raises(QrayError, match="share no TEST clip"):
        over_seeds([runs[0], replace(runs[1], variants=tuple(moved))])


def test_one_run_is_no_study_of_seeds(outs: list[Path]) -> None:
    with pytest.raises(UsageError, match="two runs or more"):
        over_seeds([read_evidence(outs[0])])


def test_one_seed_has_the_interval_over_its_clips() -> None:
    values = np.random.default_rng(0).normal(size=(1, 80))
    _, ours = two_level(values, 20_000, 0)
    assert ours == pytest.approx(interval(bootstrap_means(values.T, 20_000, 1), 80), abs=0.02)


def test_values_that_are_all_the_same_have_an_interval_of_no_width() -> None:
    assert two_level(np.full((3, 20), 2.0), 200, 0) == (2.0, (2.0, 2.0))


def test_seeds_that_differ_widen_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=(3, 80))
    (_, (low, high)), (_, (lower, higher)) = (
        two_level(values + shift, 500, 0) for shift in (np.zeros((3, 1)), np.array([[-1.0], [0.0], [1.0]]))
    )
    assert higher - lower > 2 * (high - low)


def test_the_command_prints_a_line_per_variant(outs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    show_seeds(outs, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("shaky")).split()[1] == "3"
    assert any(line.startswith("3 seeds (0, 1, 2) on 200 clips; margin 1") for line in lines)


def test_the_command_prints_json(outs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    show_seeds(outs, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert [v["verdict"] for v in printed["variants"]] == [None, "non-inferior", "inferior", "inconclusive"]
