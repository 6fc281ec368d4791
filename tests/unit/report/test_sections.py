"""What the parts of a report say, and what stands in their place where a run has nothing to say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.evidence_runs import VARIANTS, make_run
from support.reports import report_of, section, small_run, texts
from support.videos import numbered_frames, write_file_list, write_video

from qray.judge.judge import read_evidence
from qray.judge.places import class_errors
from qray.report.thumbnails import find_video, worst_clips
from qray.words.document import Clips, Document, Gallery, Picture, pictures


@pytest.fixture
def full(full_report: tuple[Path, Document]) -> Document:
    return full_report[1]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Document:
    return report_of(small_run(tmp_path_factory.mktemp("bare") / "out", verdict={"thresholds": []}))


def test_the_parts_come_in_the_order_in_which_they_are_needed(full: Document) -> None:
    assert [found.anchor for found in full.sections] == [
        "table", "guardrails", "front", "predictions", "classes", "decisions", "speed", "layers", "parity", "sweep",
        "timeline", "worst", "rejected", "facts",
    ]  # fmt: skip


def test_every_finished_variant_has_its_plots(full: Document) -> None:
    names = {picture.name for found in full.sections for picture in pictures(found.blocks)}
    for variant in ("fp32-inductor", "ptq-openvino", "ptq-onnxruntime", "dynamic"):
        wanted = {f"{kind}-{variant}" for kind in ("scatter", "bland-altman-label", "bland-altman-fp32")}
        assert wanted <= names


def test_every_plot_has_a_name_of_its_own(full: Document) -> None:
    names = [picture.name for found in full.sections for picture in pictures(found.blocks)]
    assert len(names) == len(set(names))


def test_the_most_sensitive_layer_is_named(full: Document) -> None:
    assert "Most sensitive: layer1.0.conv1" in section(full, "layers")


def test_what_is_outside_the_network_is_said(full: Document) -> None:
    assert "of the time is outside the network" in section(full, "speed")


def test_deployed_predictions_are_held_against_simulated_ones(full: Document) -> None:
    """What the kernels add, what quantization costs, and the share that the gate goes by."""
    said = section(full, "parity")
    assert "16 clips; at most 0.020 apart" in said
    assert "may be at most 0.5 of what quantization costs" in said
    for figure in ("0.015", "0.133", "0.11"):
        assert f"text='{figure}'" in said


def test_what_each_remedy_gives_back_is_said_beside_its_name(tmp_path: Path) -> None:
    """Against the plain variant of the same method, engine and width, on the same clips."""
    wide = {"observer": "minmax", "range_margin": 1.5, "calibration_clips": 512}
    variants = {name: VARIANTS[name] for name in ("fp32", "ptq-onnxruntime", "ptq-openvino")}
    variants["wide"] = replace(VARIANTS["ptq-onnxruntime"], delta=0.5, sd=0.5, settings=wide)
    said = section(report_of(make_run(tmp_path / "out", variants=variants)), "remedies")
    assert "Remedies of ptq on onnxruntime, 8-bit weights" in said
    assert "openvino" not in said
    assert "minmax observer, ranges x 1.5, 512 calibration clips" in said
    assert "+2.00 (+1." in said


def test_without_remedies_there_is_no_word_of_them(full: Document) -> None:
    assert "remedies" not in {found.anchor for found in full.sections}


def test_rejected_clips_are_listed_with_their_reasons(full: Document) -> None:
    said = section(full, "rejected")
    assert "clip-x" in said
    assert "EF is no number" in said


def test_the_worst_clips_are_shown_with_label_and_both_predictions(full: Document) -> None:
    blocks = next(found.blocks for found in full.sections if found.anchor == "worst")
    cards = [card for block in blocks if isinstance(block, Clips) for card in block.cards]
    assert all(len(card.frames) == 3 for card in cards)
    assert all([line.split()[0] for line in card.lines] == ["Label", "FP32", "ptq-openvino", "moved"] for card in cards)


def test_the_worst_clip_is_the_one_with_the_largest_error(full_report: tuple[Path, Document]) -> None:
    out, full = full_report
    evidence = read_evidence(out)
    clips = next(v.clips for v in evidence.variants if v.name == "ptq-openvino")
    assert clips is not None
    worst = clips.loc[(clips["prediction"] - clips["target"]).abs().idxmax(), "clip"]
    blocks = next(found.blocks for found in full.sections if found.anchor == "worst")
    assert next(block for block in blocks if isinstance(block, Clips)).cards[0].clip == worst


def test_without_the_videos_there_is_a_sentence_and_the_figures(bare: Document) -> None:
    said = section(bare, "worst")
    assert "name its folder with --data" in said
    assert "Label" in said


@pytest.mark.parametrize(
    ("anchor", "said"),
    [
        ("layers", "was not measured"),
        ("classes", "names no thresholds"),
        ("speed", "What decoding, preprocessing, backbone and head cost apart was not measured"),
    ],
)
def test_what_was_not_measured_is_a_sentence(bare: Document, anchor: str, said: str) -> None:
    assert said in section(bare, anchor)


def test_without_latency_there_is_a_sentence_instead_of_a_front(tmp_path: Path) -> None:
    out = small_run(tmp_path / "out")
    for unit in (out / "units").glob("measure-*.json"):
        unit.unlink()
    assert "no speed-up can be given" in section(report_of(out), "speed")


def test_classes_hold_every_clip_once(tmp_path: Path) -> None:
    evidence = read_evidence(make_run(tmp_path))
    assert evidence.reference is not None
    assert evidence.study is not None
    found = class_errors(evidence.reference.clips, evidence.study.verdict)
    assert [item.name for item in found] == ["< 35", "35 to 40", "40 to 45", "45 to 50", "≥ 50"]
    assert sum(item.n for item in found) == 200


def test_a_class_has_the_error_of_its_own_clips(tmp_path: Path) -> None:
    evidence = read_evidence(make_run(tmp_path))
    assert evidence.reference is not None
    assert evidence.reference.clips is not None
    assert evidence.study is not None
    low = evidence.reference.clips.query("target < 35")
    expected = (low["prediction"] - low["target"]).abs().mean()
    first = class_errors(evidence.reference.clips, evidence.study.verdict)[0]
    assert first.error is not None
    assert first.error.mae == pytest.approx(expected)


def test_a_damaged_video_is_a_sentence(tmp_path: Path) -> None:
    for number in range(200):
        path = tmp_path / "Videos" / f"clip-{number:03d}.avi"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"RIFF")
    evidence = read_evidence(small_run(tmp_path / "out"))
    shown = next(variant for variant in evidence.variants if variant.name == "ptq-openvino")
    assert "cannot be decoded" in texts(tuple(worst_clips(shown, evidence.study, tmp_path)))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside"])
def test_no_clip_leads_out_of_the_data_set(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "outside.avi", numbered_frames(2))
    (tmp_path / "set" / "a").mkdir(parents=True)
    assert find_video(tmp_path / "set", name) is None


def test_a_clip_is_found_with_or_without_its_ending(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a" / "b.mp4", numbered_frames(2), "mpeg4", "yuv420p")
    assert find_video(tmp_path, "a/b") == find_video(tmp_path, "a/b.mp4") == str(path)


def test_a_clip_that_keeps_its_ending_is_the_file_of_that_ending(tmp_path: Path) -> None:
    for name, codec in (("P0.avi", "mpeg4"), ("P0.mp4", "mpeg4")):
        write_video(tmp_path / name, numbered_frames(2), codec, "yuv420p")
    assert [find_video(tmp_path, name) for name in ("P0.avi", "P0.mp4")] == [
        str(tmp_path / "P0.avi"),
        str(tmp_path / "P0.mp4"),
    ]


def test_pictures_are_of_the_file_that_the_list_names(tmp_path: Path) -> None:
    """Two endings of one name, of which only the second, a whole video, is listed; the first is damaged."""
    evidence = read_evidence(small_run(tmp_path / "out"))
    shown = next(variant for variant in evidence.variants if variant.name == "ptq-openvino")
    assert shown.clips is not None
    rows = []
    for clip in shown.clips["clip"]:
        write_video(tmp_path / "Videos" / f"{clip}.mp4", numbered_frames(6), "mpeg4", "yuv420p")
        (tmp_path / "Videos" / f"{clip}.avi").write_bytes(b"RIFF")
        rows.append((f"{clip}.mp4", 50, "TEST"))
    write_file_list(tmp_path, rows, ("FileName", "EF", "Split"))
    blocks = tuple(worst_clips(shown, evidence.study, tmp_path))
    assert "cannot be decoded" not in texts(blocks)
    assert "truncated" not in texts(blocks)


def test_a_gallery_counts_as_its_pictures() -> None:
    picture = Picture("a", "alt", "<svg/>", b"png")
    assert pictures((Gallery((picture, picture)),)) == [picture, picture]
