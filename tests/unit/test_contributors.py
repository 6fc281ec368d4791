"""What contributors are handed: hooks that check what continuous integration does, forms that GitHub takes, records of
decisions that can be found and read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from qray.cli import app

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
TEMPLATES = GITHUB / "ISSUE_TEMPLATE"
DECISIONS = GITHUB / "decisions"
FORMS = ("bug", "wrong_figure", "engine")
SECTIONS = ["Context", "Decision", "What it costs", "What would change it"]
RECORDS = sorted(path.name for path in DECISIONS.glob("[0-9]*.md"))
WRITTEN = [ROOT / ".pre-commit-config.yaml", *sorted(p for p in GITHUB.rglob("*") if p.suffix in (".md", ".yml"))]
#: Attributes that GitHub takes, by the type of a field; those in capitals it asks for.
ATTRIBUTES = {
    "markdown": {"VALUE"},
    "input": {"LABEL", "description", "placeholder", "value"},
    "textarea": {"LABEL", "description", "placeholder", "value", "render"},
    "dropdown": {"LABEL", "OPTIONS", "description", "multiple", "default"},
    "checkboxes": {"LABEL", "OPTIONS", "description"},
}
pytestmark = pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="no clone: a source archive leaves .github out")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def hooks() -> list[dict[str, Any]]:
    return [hook for repo in load(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]


def fields(form: str) -> list[dict[str, Any]]:
    """What a form asks for, without the text between."""
    return [field for field in load(TEMPLATES / f"{form}.yml")["body"] if field["type"] != "markdown"]


def asked(form: str) -> dict[str, str]:
    """The words of each field that must be filled in, by id."""
    required = [field for field in fields(form) if field.get("validations", {}).get("required")]
    return {field["id"]: " ".join(map(str, field["attributes"].values())) for field in required}


def text_of(record: str) -> str:
    return (DECISIONS / record).read_text(encoding="utf-8")


def test_the_hooks_are_the_static_checks_of_continuous_integration() -> None:
    groups = re.findall(r'\{ (.+); \} >"\$scratch/checks"', (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert [hook["entry"] for hook in hooks()] == [check for group in groups for check in group.split(" && ")]


def test_hooks_download_nothing() -> None:
    repos = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert {repo["repo"] for repo in repos} == {"local"}
    assert {hook["language"] for hook in hooks()} == {"system"}


def test_hooks_see_every_file_at_every_commit() -> None:
    known = {"id", "name", "entry", "language", "pass_filenames", "always_run"}
    assert [hook["id"] for hook in hooks() if hook.keys() != known] == []
    assert [hook["id"] for hook in hooks() if hook["pass_filenames"] or not hook["always_run"]] == []


def test_the_extra_for_tests_brings_the_tools_of_the_hooks() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    tools = {re.split(r"[^\w-]", requirement)[0] for requirement in extra["test"]}
    assert {hook["entry"].split()[0] for hook in hooks()} <= tools


def test_the_forms_are_those_that_are_tested() -> None:
    assert {path.stem for path in TEMPLATES.iterdir()} == {*FORMS, "config"}


def test_what_fits_no_form_can_be_asked_all_the_same() -> None:
    assert load(TEMPLATES / "config.yml") == {"blank_issues_enabled": True}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_has_what_github_asks_for_and_nothing_that_it_does_not_know(form: str) -> None:
    found = load(TEMPLATES / f"{form}.yml")
    assert {"name", "description", "body"} <= found.keys() <= {"name", "description", "body", "title", "labels"}
    for field in found["body"]:
        names = ATTRIBUTES[field["type"]]
        needed = {name.lower() for name in names if name.isupper()}
        assert needed <= field["attributes"].keys() <= {name.lower() for name in names}, field
        assert field.keys() <= {"type", "id", "attributes", "validations"}, field
        assert all(field["attributes"][name] for name in needed), field


@pytest.mark.parametrize("form", FORMS)
def test_fields_have_ids_and_labels_of_their_own(form: str) -> None:
    ids = [field["id"] for field in fields(form)]
    labels = [field["attributes"]["label"] for field in fields(form)]
    assert (len(set(ids)), len(set(labels))) == (len(ids), len(labels))
    assert [name for name in ids if not re.fullmatch(r"[A-Za-z0-9_-]+", name)] == []


@pytest.mark.parametrize("form", FORMS)
def test_choices_are_distinct_words(form: str) -> None:
    for field in fields(form):
        options = field["attributes"].get("options", [])
        # GitHub refuses what YAML reads as a boolean, and keeps "None" for itself.
        assert all(isinstance(option, str) and option.lower() != "none" for option in options), field
        assert len(set(options)) == len(options), field


@pytest.mark.parametrize("form", FORMS)
def test_no_form_is_sent_without_the_diagnosis_of_the_machine(form: str) -> None:
    assert "`qray doctor --json`" in asked(form)["doctor"]


@pytest.mark.parametrize("wanted", ["`qray show OUT --json`", "study.yaml", "`qray pick OUT`"])
def test_a_wrong_figure_comes_with_its_row_its_study_and_what_was_picked(wanted: str) -> None:
    assert [name for name, words in asked("wrong_figure").items() if wanted in words] != []


def test_a_pull_request_shows_the_table_before_and_after() -> None:
    text = (GITHUB / "pull_request_template.md").read_text(encoding="utf-8")
    places = [text.find(words) for words in ("## Proof of value", "`qray show A`", "`qray show B`", "`qray diff A B`")]
    assert -1 not in places
    assert places == sorted(places)


def missing_of(words: str) -> list[str]:
    """Subcommands and options of a `qray` command that qray does not have."""
    command: Any = typer.main.get_command(app)
    for word in (word for word in words.split() if word.islower() and not word.startswith("-")):
        known = getattr(command, "commands", {})
        if word not in known:
            return [word]
        command = known[word]
    options = {option for parameter in command.params for option in parameter.opts}
    return [word for word in words.split() if word.startswith("-") and word not in options]


def test_commands_that_contributors_are_told_to_run_exist() -> None:
    told = {words for path in WRITTEN for words in re.findall(r"`qray ([^`]+)`", path.read_text(encoding="utf-8"))}
    assert "doctor --json" in told
    assert {words: missing for words in told if (missing := missing_of(words))} == {}


def test_lines_are_no_longer_than_those_of_the_code() -> None:
    lines = [(path.name, line) for path in WRITTEN for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(name, line) for name, line in lines if len(line) > 120] == []


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_has_its_four_sections_each_with_something_in_it(record: str) -> None:
    _, *parts = re.split(r"^## ", text_of(record), flags=re.M)
    assert [part.splitlines()[0] for part in parts] == SECTIONS
    assert [part.splitlines()[0] for part in parts if not part.partition("\n")[2].strip()] == []


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_short(record: str) -> None:
    assert len(text_of(record).splitlines()) <= 40


def test_records_are_numbered_without_a_gap() -> None:
    assert [int(record[:4]) for record in RECORDS] == list(range(1, len(RECORDS) + 1))
    assert len(RECORDS) >= 8


def test_the_list_has_every_record_under_its_title() -> None:
    listed = re.findall(r"^\d+\. \[(.+)\]\((.+)\)$", text_of("README.md"), flags=re.M)
    assert listed == [(text_of(record).splitlines()[0].removeprefix("# "), record) for record in RECORDS]


def test_records_that_a_record_refers_to_exist() -> None:
    referred = {number for record in RECORDS for number in re.findall(r"\((\d{4})\)", text_of(record))}
    assert referred
    assert referred <= {record[:4] for record in RECORDS}
