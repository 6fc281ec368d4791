"""Whatever stands in a study: it is read and can be planned, or each fault is a sentence with key and line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.graphs import manifest_of
from support.runs import TINY, main_here

from qray.errors import UsageError
from qray.study_files import dump_study, load_study, parse_study
from qray.units.plan import study_units

MANIFEST = manifest_of({"TRAIN": 24, "VAL": 10, "TEST": 12})
FULL = load_study("report").canonical()
TEXTS = (TINY.read_text(encoding="utf-8"), yaml.safe_dump(FULL, sort_keys=False))
#: What people and machines write where something else belongs, and what YAML has that a study does not take.
JUNK = (
    "null", "true", "0", "-1", "1.5", "1e9", ".nan", ".inf", "1" * 5000, str(10**30), "12:30:45", "2001-01-01",
    "''", "' '", '"\\0"', '"\\ud800"', '"\\e[31mred\\nline"', "'8'", "word", "'" + "x" * 10_000 + "'", "eager",
    "[]", "{}", "[1]", "[[]]", "[null]", "{a: 1}", "a: b", "- x", "&a [*a]", "*nope", "!!python/object:os.system x",
    "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]", "!!float abc", "!!int abc", "!!bool x", "!!timestamp x",
    "<<", "{<<: {a: 1}}", "{<<: 1}", "{? [a] : b}", "{[1]: 2}", "{null: 1}", "{1: 2}", "|", "> ", "@x", "`x", "%x",
    "[" * 3000 + "]" * 3000, "\0", "\u2028", "\ufeff", "\t", "../../etc/passwd", "~nobody/x", "/dev/null", "=", "!x y",
)  # fmt: skip
VALUES = (None, True, 0, 1, -1, 0.5, 10**9, 10**30, -(10**30), 1e308, 5e-324, float("nan"), float("inf"), "x", "", [],
          {}, [[]], [None], {"a": 1})  # fmt: skip
#: One way of each time: of a machine's own choice would be another test each time.
FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def places(node: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every key and item of a study, and of what is in it."""
    within = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [at, *(place for key, value in within for place in places(value, (*at, key)))]


def check(text: str, *changes: str) -> None:
    """It is a study that can be planned and read again, or each fault has its place, in a line of some length."""
    try:
        study = parse_study(text, "s.yaml", changes)
    except UsageError as error:
        # `model` alone where its folder was set, by --model as well as by --set.
        place = r"(s\.yaml, line \d+|--set [^:]+|model): \S"
        unplaced = [line for line in str(error).split("\n") if not re.match(place, line) or len(line) > 800]
        assert not unplaced
    else:
        study_units(study, MANIFEST)
        assert parse_study(dump_study(study), "again") == study


@st.composite
def values_replaced(draw: st.DrawFn) -> str:
    """A study of which one to three values, or keys, are something else."""
    lines = draw(st.sampled_from(TEXTS)).split("\n")
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.sampled_from([n for n, line in enumerate(lines) if ":" in line and line.strip()[0] != "#"]))
        pairs = list(re.finditer(r"([\w.]+): ([^,{}\[\]]+)", lines[number])) or [
            found for found in [re.match(r" *(\w+):(.*)", lines[number])] if found
        ]
        if pairs:
            pair, group = draw(st.sampled_from(pairs)), draw(st.sampled_from((1, 2, 2, 2)))
            junk = draw(st.sampled_from(JUNK))
            lines[number] = f"{lines[number][: pair.start(group)]}{junk}{lines[number][pair.end(group) :]}"
        elif draw(st.booleans()):
            lines.insert(number, lines[number])
        else:
            del lines[number]
    return "\n".join(lines)


@st.composite
def signs_replaced(draw: st.DrawFn) -> str:
    """A study that a slip of the hand, or of a disk, has changed."""
    text = list(draw(st.sampled_from(TEXTS)))
    for _ in range(draw(st.integers(1, 20))):
        at, most = draw(st.integers(0, len(text) - 1)), draw(st.sampled_from((0, 0, 1, 30)))
        text[at : at + most] = draw(st.sampled_from((*"{}[]:,-#&*!|>'\"%@`? \t\n0a~", "\0", "\x7f", "\x85", "")))
    return "".join(text)


@st.composite
def one_value_set(draw: st.DrawFn) -> str:
    """A valid study with one extreme value: most of these are of the type that is wanted."""
    place = draw(st.sampled_from(places(FULL)[1:]))
    return f"{'.'.join(map(str, place))}={yaml.safe_dump(draw(st.sampled_from(VALUES)))}"


@FUZZ
@given(values_replaced())
def test_another_value_is_read_or_a_fault_with_its_place(text: str) -> None:
    check(text)


@FUZZ
@given(signs_replaced())
def test_another_sign_is_read_or_a_fault_with_its_place(text: str) -> None:
    check(text)


@FUZZ
@given(one_value_set())
def test_an_extreme_value_can_be_planned_or_is_refused(change: str) -> None:
    check(TEXTS[1], change)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: \x00\n", "s.yaml, line 1: not valid YAML: a character that is none of text (U+0000)"),
        ("\n\nname: a\n\x7f", "s.yaml, line 4: not valid YAML: a character that is none of text (U+007F)"),
        ("name: a\nseed: !!int abc\n", "s.yaml, line 2: seed: 'abc' cannot be read as int"),
        (f"seed: {'1' * 5000}\n", "s.yaml, line 1: seed: '11111111111111111111...1111111111' cannot be read as int"),
        ("seed: !!python/name:os.system\n", "s.yaml, line 1: seed: !!python/name:os.system is not taken"),
        ("data: !!set {a}\n", "s.yaml, line 1: data: !!set is not taken; what is: text, numbers"),
        ("a: 1\n? [b]\n: 2\n", "s.yaml, line 2: a list or mapping: a key is a word"),
        ("on: 1\n", "s.yaml, line 1: on: a key is a word, in quotes if YAML reads it as more"),
        ("name: " + "[" * 3000, "s.yaml, line 1: lists or mappings within each other, hundreds deep"),
    ],
)
def test_what_yaml_can_say_and_a_study_cannot_is_named_with_its_line(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_study(text, "s.yaml")
    assert str(caught.value).startswith(said)


def test_aliases_of_aliases_are_not_followed_for_ever() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for n in range(30):
        text += f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n"
    with pytest.raises(UsageError, match="more than 100,000 values"):
        parse_study(text, "s.yaml")


@pytest.mark.parametrize("changed", ["lr: [0.1]", 'optimizer: "\\e[31m\\n"', "epochs: 1\n\0", "lr: 1\n    lr: 2"])
def test_the_command_says_a_sentence_and_ends_with_2(changed: str, tmp_path: Path) -> None:
    study, out = tmp_path / "s.yaml", tmp_path / "out"
    study.write_text(f"name: a\ntraining:\n    {changed}\nvariants: []\n", encoding="utf-8")
    done = main_here("run", "all", "--study", study, "--out", out)
    assert done.code == 2
    assert done.stderr.startswith(f"error: {study}, line ")
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
