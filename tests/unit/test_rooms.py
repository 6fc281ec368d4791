"""Who may import whom: arrows between judge, answers, words and what stands beside them point down."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import qray

ROOT = Path(qray.__file__).parent
#: What each room imports of these, itself left out; the rest of qray is not looked at.
ROOMS = ("judge", "answers", "words", "report", "trackers")
BELOW = {
    "judge": set(),
    "answers": {"judge"},
    "words": {"judge", "answers"},
    "report": {"judge", "answers", "words"},
    "trackers": {"judge", "answers", "words"},
}


def imported(path: Path) -> set[str]:
    """Modules of qray that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name.removeprefix("qray.") for name in found if name.startswith("qray.")}


def rooms_of(room: str) -> set[str]:
    return {name.partition(".")[0] for path in (ROOT / room).glob("*.py") for name in imported(path)} - {room}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_is_below_it(room: str) -> None:
    assert rooms_of(room) & set(ROOMS) <= BELOW[room]


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_knows_ray(room: str) -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / room).glob("*.py")]
    names = {
        alias.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    names |= {node.module or "" for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in names if name.partition(".")[0] == "ray"} == set()


def test_answers_words_and_reports_compute_no_statistics() -> None:
    computing = ("bootstrap_means", "interval", "mean_interval", "share_interval", "rank_sum", "accuracy",
                 "paired_difference", "paired_ratio", "tail_probability")  # fmt: skip
    called = {f"judge.statistics.{name}" for name in computing}
    above = [path for room in ROOMS[1:] for path in (ROOT / room).glob("*.py")]
    assert {path.name: found for path in above if (found := imported(path) & called)} == {}
