"""Studies as files: found by name or path, changed by --set, and every fault named by its key and line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from qray.errors import UsageError
from qray.study import Study
from qray.study_files import dump_study, load_study, named_studies, parse_study, workflow_folder

ROOT = Path(__file__).parents[2]
GOOD = """\
name: good
training: {lr: 1.0e-3}
variants:
  - {name: fp32, method: fp32, engine: eager}
"""


def faults(text: str, *settings: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse_study(text, "s.yaml", settings)
    return str(caught.value).splitlines()


def fault(text: str, *settings: str) -> str:
    (only,) = faults(text, *settings)
    return only


@pytest.mark.parametrize("name", ["quickstart", "echonet", "report"])
def test_named_studies_survive_a_round_trip(name: str) -> None:
    study = load_study(name)
    assert parse_study(dump_study(study), "again") == study


def test_the_named_studies_are_those_of_the_workflows_folder() -> None:
    assert set(named_studies()) == {file.stem for file in (ROOT / "workflows").glob("*.yaml")}


def test_a_study_bears_the_name_of_its_file() -> None:
    # Of a model of one's own there is none in the study's file.
    more = {"imported": ["model.backbone=resnet18", "training.epochs=1"]}
    assert [load_study(name, more.get(name, ())).name for name in named_studies()] == named_studies()


def test_the_default_margin_is_declared_in_every_named_study() -> None:
    assert all("verdict:" in (workflow_folder() / f"{name}.yaml").read_text() for name in named_studies())


def test_the_wheel_holds_the_studies_where_they_are_looked_for() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"workflows": "qray/workflows"}


def test_a_study_is_loaded_by_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    assert load_study(str(tmp_path / "mine.yaml")).name == "good"


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: no such file"):
        load_study(str(tmp_path / "none.yaml"))


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_study(str(tmp_path / "latin.yaml"))


def test_an_unknown_key_is_named_with_file_and_line() -> None:
    assert fault(GOOD + "sed: 1\n") == "s.yaml, line 5: sed: no such key"


def test_an_unknown_key_inside_a_section_is_named_with_its_path() -> None:
    assert fault(GOOD + "clip:\n  frames: 8\n  size: 9\n") == "s.yaml, line 7: clip.size: no such key"


def test_a_wrong_type_shows_what_was_found() -> None:
    assert fault(GOOD + "seed: soon\n").startswith("s.yaml, line 5: seed: ")
    assert "found 'soon'" in fault(GOOD + "seed: soon\n")


def test_a_method_on_the_wrong_engine_is_named_by_the_line_of_its_variant() -> None:
    said = fault(GOOD + "  - {name: q, method: qat, engine: openvino}\n")
    assert said == "s.yaml, line 5: variants.1: method qat runs on inductor, not on openvino"


def test_workers_that_cannot_share_a_batch_are_named_by_key_and_line() -> None:
    said = "training.batch_size (16), which all workers share, must be a multiple of them (found 3)"
    text = GOOD.replace("{lr: 1.0e-3}", "\n  batch_size: 16\n  workers: 3")
    assert fault(text) == f"s.yaml, line 4: training.workers: {said}"
    assert fault(GOOD, "training.workers=3") == f"--set training.workers: {said}"


def test_two_faults_are_both_named() -> None:
    assert [line.split(": ")[1] for line in faults(GOOD + "seed: x\nclip: {frames: 0}\n")] == ["seed", "clip.frames"]


def test_a_missing_key_is_named() -> None:
    assert fault("name: x\n") == "s.yaml, line 1: variants: is required"


def test_broken_yaml_is_named_with_its_line() -> None:
    assert fault("name: x\nvariants: [\n").startswith("s.yaml, line 3: not valid YAML: ")


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n"])
def test_an_empty_study_is_said_to_be_empty(text: str) -> None:
    assert "is empty" in fault(text)


@pytest.mark.parametrize("text", ["- 1\n", "quickstart\n", "[]\n"])
def test_a_study_that_is_no_mapping_is_refused(text: str) -> None:
    assert "expected a mapping of keys" in fault(text)


def test_a_key_that_stands_twice_is_an_error_that_names_both_lines() -> None:
    assert fault(GOOD + "name: other\n") == "s.yaml, line 5: name: stands in line 1 already"


def test_a_key_that_stands_twice_inside_a_variant_is_an_error() -> None:
    text = GOOD.replace("engine: eager", "engine: eager, engine: openvino")
    assert fault(text) == "s.yaml, line 4: variants.0.engine: stands in line 4 already"


def test_every_key_that_stands_twice_is_named() -> None:
    assert len(faults(GOOD + "name: a\ntraining: {}\n")) == 2


def test_an_alias_of_what_it_stands_in_is_an_error_with_its_place() -> None:
    assert fault("name: s\nvariants: &all [*all]\n") == "s.yaml, line 2: variants.0: an alias of what it stands in"


def test_an_alias_of_something_else_is_read() -> None:
    text = GOOD.replace("engine: eager", "engine: &e eager") + "evaluation: &v {batch_size: 4}\n"
    assert parse_study(text, "s.yaml").evaluation.batch_size == 4


@pytest.mark.parametrize("name", ["2026-11-26", "2020-13-45"])
def test_a_word_that_looks_like_a_date_is_a_word(name: str) -> None:
    assert parse_study(GOOD.replace("name: good", f"name: {name}"), "s.yaml").name == name


def test_set_changes_a_key() -> None:
    assert parse_study(GOOD, "s.yaml", ["training.epochs=3"]).training.epochs == 3


def test_set_leaves_the_rest_of_the_section() -> None:
    assert parse_study(GOOD, "s.yaml", ["training.epochs=3"]).training.lr == 1e-3


def test_set_takes_lists() -> None:
    assert parse_study(GOOD, "s.yaml", ["measure.threads=[1, 4]"]).measure.threads == (1, 4)


def test_set_takes_an_item_of_a_list() -> None:
    assert parse_study(GOOD, "s.yaml", ["variants.0.name=plain"]).variants[0].name == "plain"


def test_set_fills_a_section_that_the_study_has_as_null() -> None:
    text = GOOD.replace("training: {lr: 1.0e-3}", "training: {augment: null}")
    augment = parse_study(text, "s.yaml", ["training.augment.gain=0.1"]).training.augment
    assert augment is not None
    assert augment.gain == 0.1


def test_set_to_null_takes_an_optional_section_away() -> None:
    assert parse_study(GOOD + "sweep: {trials: 2}\n", "s.yaml", ["sweep=null"]).sweep is None


def test_set_to_null_of_a_section_that_must_be_is_refused() -> None:
    assert fault(GOOD, "clip=null").startswith("--set clip: ")


def test_of_two_settings_of_a_key_the_last_one_counts() -> None:
    assert parse_study(GOOD, "s.yaml", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("sed=1", "--set sed: no such key"),
        ("training.epoch=1", "--set training.epoch: no such key"),
        ("seed=soon", "found 'soon'"),
        ("seed", "expected key=value"),
        ("=1", "expected key=value"),
        ("seed=[", "--set seed: line 1: not valid YAML"),
        ("name.first=x", "nothing to set 'first' in"),
        ("variants.7.name=x", "items are 0 to 0"),
        ("variants.fp32.name=x", "items are 0 to 0"),
        ("data.dir.x=1", "--set data.dir.x"),
        ("variants.0.engine=onyx", "--set variants.0.engine: "),
        ("training={lr: 1, lr: 2}", "stands in line 1 already"),
    ],
)
def test_a_setting_that_is_wrong_is_named_as_one(setting: str, said: str) -> None:
    assert said in fault(GOOD, setting)


def test_a_setting_that_contradicts_the_file_is_named_with_it() -> None:
    text = GOOD + "  - {name: q, method: qat, engine: inductor}\nsweep: {trials: 2}\n"
    assert fault(text, "sweep=null").endswith("(after --set sweep)")


def test_a_line_of_the_file_is_not_blamed_on_a_setting_elsewhere() -> None:
    assert fault(GOOD + "sed: 1\n", "seed=3") == "s.yaml, line 5: sed: no such key"


def test_the_dumped_study_has_every_default_filled_in() -> None:
    assert "bootstrap: 10000" in dump_study(parse_study(GOOD, "s.yaml"))


def test_a_name_beyond_ascii_is_kept_in_paths() -> None:
    study = parse_study(GOOD, "s.yaml", ["data.dir=심장"])
    assert Study.model_validate(study.canonical()).data.dir == "심장"
