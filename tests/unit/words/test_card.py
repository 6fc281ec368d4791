"""A model card says what the evidence says, says what is unknown, and leaves the artifact as it was."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from support.evidence_runs import VARIANTS, key_of, make_run

from qray.atomic import write_json
from qray.errors import QrayError, UsageError
from qray.judge.judge import read_evidence
from qray.study import Model
from qray.words.card import network_words, write_cards

SECTIONS = (
    "Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data", "Quantitative analyses",
    "Ethical considerations", "Caveats and recommendations", "How to load it", "Versions",
)  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("cards") / "out")
    write_cards(read_evidence(folder))
    return folder


def text(out: Path, name: str) -> str:
    return (out / "cards" / f"{name}.md").read_text(encoding="utf-8")


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def metadata(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def card_of(folder: Path, name: str = "ptq-openvino", **how: Any) -> str:
    """The card of one variant of a run made for the occasion."""
    write_cards(read_evidence(make_run(folder / "out", **how)), [name])
    return text(folder / "out", name)


def artifact(folder: Path, name: str, needs: Sequence[str] = ()) -> Path:
    """A made-up artifact.json where the run made by hand says that the artifact is."""
    path = folder / "out" / "artifacts" / key_of("build", name)
    write_json(path / "artifact.json", {
        "clip": {"frames": 7, "image_size": 48}, "versions": {"openvino": "1.2.3", "cpu_flags": "avx2 fma"},
        "isa": "avx512-vnni", "built": {"macs_per_clip": 1234567, "needs": needs, "notes": {}},
    })  # fmt: skip
    return path


def test_every_variant_with_an_artifact_gets_a_card(out: Path) -> None:
    built = {name for name, made in VARIANTS.items() if made.status == "ok"}
    assert {path.stem for path in (out / "cards").iterdir()} == built


@pytest.mark.parametrize("title", SECTIONS)
def test_a_card_has_the_sections_of_mitchell_et_al(out: Path, title: str) -> None:
    assert section(text(out, "ptq-openvino"), title).strip()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ptq-openvino", "As good as FP32 by the study's margin (non-inferior)"),
        ("ptq-onnxruntime", "Worse than FP32 by more than the study's margin (inferior)"),
        ("dynamic", "Whether it is as good as FP32 is not settled (inconclusive)"),
        ("fp32", "It is the FP32 reference"),
    ],
)
def test_the_first_paragraph_says_the_verdict(out: Path, name: str, words: str) -> None:
    assert words in text(out, name).split("## Model details")[0]


def test_an_inconclusive_verdict_says_how_many_clips_would_settle_it(out: Path) -> None:
    compared = next(v.comparison for v in read_evidence(out).variants if v.name == "dynamic")
    assert compared is not None
    assert f"About {compared.clips_to_settle:,} TEST clips would settle it" in text(out, "dynamic")


def test_only_an_equivalent_variant_is_called_so(out: Path) -> None:
    # qat-inductor is better than FP32 by more than the margin.
    assert ["equivalent" in text(out, name) for name in ("bf16-openvino", "qat-inductor")] == [True, False]


def test_the_figures_are_those_of_the_evidence(out: Path) -> None:
    accuracy = next(v.accuracy for v in read_evidence(out).variants if v.name == "ptq-openvino")
    assert accuracy is not None
    line = f"| MAE (200 clips) | {accuracy.mae:.2f} | {accuracy.mae_low:.2f} to {accuracy.mae_high:.2f} |"
    assert line in text(out, "ptq-openvino")


def test_the_front_matter_holds_the_evaluation_as_a_model_index(out: Path) -> None:
    (entry,) = metadata(text(out, "ptq-openvino"))["model-index"]
    accuracy = next(v.accuracy for v in read_evidence(out).variants if v.name == "ptq-openvino")
    assert accuracy is not None
    found = {metric["type"]: metric["value"] for metric in entry["results"][0]["metrics"]}
    assert found == pytest.approx({"mae": accuracy.mae, "rmse": accuracy.rmse, "r_squared": accuracy.r2}, abs=1e-4)


def test_the_licence_of_the_weights_is_said_to_be_unknown(out: Path) -> None:
    assert metadata(text(out, "fp32"))["license"] == "unknown"


def test_it_says_that_it_is_no_medical_device(out: Path) -> None:
    assert "not a medical device" in section(text(out, "fp32"), "Intended use")


def test_synthetic_training_data_are_said_to_mean_nothing_for_real_clips(out: Path) -> None:
    assert "trained on synthetic clips" in section(text(out, "fp32"), "Intended use")


def test_real_training_data_are_not_called_synthetic(tmp_path: Path) -> None:
    assert "synthetic" not in card_of(tmp_path, data_dir=tmp_path / "EchoNet-Dynamic")


def test_a_data_set_is_named_without_the_path_of_this_machine(tmp_path: Path) -> None:
    card = card_of(tmp_path, data_dir=tmp_path / "EchoNet-Dynamic")
    assert ("EchoNet-Dynamic" in card, str(tmp_path) in card) == (True, False)


def test_the_record_of_the_data_set_gives_counts_and_digest(tmp_path: Path) -> None:
    splits = {"TRAIN": {"clips": 11, "mean": 50.0, "min": 20.0, "max": 70.0}, "VAL": {"clips": 5}, "TEST": {"clips": 3}}
    card = card_of(tmp_path, units={"data-abc": {"digest": "abc", "splits": splits}})
    wanted = ("digest `abc`", "TRAIN: 11 clips, EF 50.0 on average (20.0 to 70.0)", "VAL: 5 clips")
    assert [words for words in wanted if words not in section(card, "Training data")] == []


def test_counts_that_nobody_recorded_are_said_not_to_be(tmp_path: Path) -> None:
    card = card_of(tmp_path, data_dir=tmp_path / "set")
    assert "TRAIN: number of clips not recorded" in section(card, "Training data")


def test_a_compiled_artifact_names_the_cpu_that_it_needs(tmp_path: Path) -> None:
    artifact(tmp_path, "qat-inductor", needs=["avx2", "avx512_vnni"])
    assert "built for avx512-vnni: on a CPU without avx2, avx512_vnni it refuses to load" in section(
        card_of(tmp_path, "qat-inductor"), "Factors"
    )


def test_an_artifact_that_is_not_compiled_names_the_cpu_it_was_built_on(tmp_path: Path) -> None:
    artifact(tmp_path, "ptq-openvino")
    assert "not compiled for one CPU; built on one with avx2, fma" in section(card_of(tmp_path), "Factors")


def test_the_versions_are_those_that_the_artifact_was_built_with(tmp_path: Path) -> None:
    artifact(tmp_path, "ptq-openvino")
    assert section(card_of(tmp_path), "Versions").strip() == "Built with openvino 1.2.3."


def test_an_artifact_that_was_moved_away_is_a_caveat(out: Path) -> None:
    assert "artifact.json could not be read" in section(text(out, "fp32"), "Caveats and recommendations")


def test_how_to_load_it_names_the_artifact(tmp_path: Path) -> None:
    loading = section(card_of(tmp_path), "How to load it")
    path = f"artifacts/{key_of('build', 'ptq-openvino')}"
    assert (f"qray predict {path} " in loading, f'load_artifact(Path("{path}")' in loading) == (True, True)


def test_how_to_load_native_code_says_that_it_must_be_allowed(tmp_path: Path) -> None:
    loading = section(card_of(tmp_path, "qat-inductor"), "How to load it")
    path = f"artifacts/{key_of('build', 'qat-inductor')}"
    assert f"qray predict --allow-code {path} " in loading
    assert f'load_artifact(Path("{path}"), threads=1, allow_code=True)' in loading


def test_writing_cards_changes_nothing_in_the_artifact(tmp_path: Path) -> None:
    path = artifact(tmp_path, "ptq-openvino")
    card_of(tmp_path)
    assert [file.name for file in path.rglob("*")] == ["artifact.json"]


def test_the_same_out_gives_the_same_card(out: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(out, tmp_path / "out"))
    write_cards(read_evidence(again), ["ptq-openvino"])
    assert text(again, "ptq-openvino") == text(out, "ptq-openvino")


def test_an_unknown_variant_is_bad_usage_that_lists_the_variants(out: Path) -> None:
    with pytest.raises(UsageError, match=r"'nope' is no variant of .*; its variants are fp32, "):
        write_cards(read_evidence(out), ["nope"])


def test_a_variant_that_was_skipped_has_no_card_and_says_why(out: Path) -> None:
    with pytest.raises(QrayError, match=r"ptq-inductor has no artifact to write a card of: skipped, no C\+\+ compiler"):
        write_cards(read_evidence(out), ["ptq-inductor"])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"without": ["fp32"]}, "FP32 has no predictions"),
        ({"clips": 1}, "one clip"),
        ({"nan": {"ptq-openvino": 200}}, "no accuracy"),
        ({"constant": ["fp32"]}, "learned nothing"),
    ],
    ids=["no FP32", "one clip", "NaN predictions", "constant FP32"],
)
def test_a_verdict_that_the_data_cannot_carry_is_not_given(tmp_path: Path, how: dict[str, Any], words: str) -> None:
    summary = card_of(tmp_path, **how).split("## Model details")[0]
    assert ("It has no verdict: " in summary, words in summary) == (True, True)


def test_a_reason_that_is_a_note_already_is_said_once(tmp_path: Path) -> None:
    assert section(card_of(tmp_path, clips=1), "Caveats and recommendations").count("one clip: ") == 1


def test_words_of_the_user_are_text_in_a_card(tmp_path: Path) -> None:
    out = make_run(tmp_path / "out", data_dir=tmp_path / "<i>set: |`\n---\nlicense: mit")
    study = (out / "study.yaml").read_text(encoding="utf-8")
    assert "target_column: EF" in study
    (out / "study.yaml").write_text(study.replace("target_column: EF", "target_column: '<b onclick=x>EF|*'"))
    write_cards(read_evidence(out), ["ptq-openvino"])
    _, head, body = text(out, "ptq-openvino").split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "unknown"
    assert yaml.safe_load(head)["model-index"][0]["results"][0]["dataset"]["name"].startswith("<i>set: |`")
    shown = MarkdownIt("commonmark").enable("table").render(body)
    assert "predicts &lt;b onclick=x&gt;EF|* from a clip" in shown
    assert re.findall("<[bi][ >]", shown) == []


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            Model(width=8, pooling="mean"),
            "resnet18 of width 8 on each frame, mean pooling over time, linear head; random weights before training",
        ),
        (
            Model(backbone="regnet_y_400mf", weights="imagenet"),
            "regnet_y_400mf on each frame, mean_std pooling over time, linear head; ImageNet weights before training",
        ),
        (
            Model(backbone="r3d_18", weights="kinetics"),
            "r3d_18 on whole clips, linear head; Kinetics weights before training",
        ),
    ],
)
def test_a_network_is_told_by_what_it_sees(model: Model, said: str) -> None:
    assert network_words(model) == said
