"""Studies as YAML: find one by name or path, apply --set, and name the key and line of what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qray.errors import UsageError
from qray.study import Study

Path_of_key = tuple[str | int, ...]


def workflow_folder() -> Path:
    """Folder of the named studies: inside the wheel, or `workflows/` of a checkout."""
    packaged = Path(__file__).parent / "workflows"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "workflows"


def named_studies() -> list[str]:
    """Names that `--study` takes without a path."""
    return sorted(file.stem for file in workflow_folder().glob("*.yaml"))


def _locate(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UsageError(f"study {path}: no such file")
        return path
    named = workflow_folder() / f"{name_or_path}.yaml"
    if not named.is_file():
        raise UsageError(
            f"study {name_or_path!r} is unknown; the named studies are {', '.join(named_studies())}, "
            "or give the path of a .yaml file"
        )
    return named


def _lines(node: yaml.Node | None, at: Path_of_key = ()) -> dict[Path_of_key, int]:
    """Line (from 1) of every key and item of a composed YAML document."""
    if node is None:
        return {}
    lines = {at: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            lines |= _lines(value, here)
            lines[here] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines |= _lines(value, (*at, index))
    return lines


def _apply(tree: dict[str, Any], setting: str) -> Path_of_key:
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise UsageError(f"--set {setting!r}: expected key=value, for example --set training.epochs=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {setting!r}: the value is not YAML ({error})") from None
    node: Any = tree
    path = key.split(".")
    for part in path[:-1]:
        child = node.setdefault(part, {}) if isinstance(node, dict) else None
        if child is None and isinstance(node, dict):
            child = node[part] = {}
        if not isinstance(child, dict):
            raise UsageError(f"--set {key}: {part!r} is not a section of the study")
        node = child
    node[path[-1]] = value
    return tuple(path)


def _sentence(error: Any, lines: dict[Path_of_key, int], origin: str, overrides: set[Path_of_key]) -> str:
    where: Path_of_key = tuple(error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "no such key"
    elif error["type"] == "missing":
        message = "is required"
    elif "input" in error and not isinstance(error["input"], dict | list | tuple):
        message += f" (found {error['input']!r})"
    key = ".".join(str(part) for part in where) or "the study"
    if any(where[: len(path)] == path for path in overrides):
        return f"--set {key}: {message}"
    nearest = where
    while nearest not in lines and nearest:
        nearest = nearest[:-1]
    return f"{origin}, line {lines.get(nearest, 1)}: {key}: {message}"


def parse_study(text: str, origin: str, settings: Sequence[str] = ()) -> Study:
    """Read a study from YAML text.

    Raises:
        UsageError: with one line per fault, each naming key and line (or the --set that caused it).
    """
    try:
        tree = yaml.safe_load(text) or {}
        lines = _lines(yaml.compose(text))
    except yaml.YAMLError as error:
        raise UsageError(f"{origin}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{origin}: expected a mapping of keys, found {type(tree).__name__}")
    overrides = {_apply(tree, setting) for setting in settings}
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        faults = [_sentence(fault, lines, origin, overrides) for fault in error.errors()]
        raise UsageError("\n".join(faults)) from None


def load_study(name_or_path: str, settings: Sequence[str] = ()) -> Study:
    """Load a named study or a YAML file, with `--set` overrides applied before validation."""
    path = _locate(name_or_path)
    return parse_study(path.read_text(encoding="utf-8"), str(path), settings)


def dump_study(study: Study) -> str:
    """The study as resolved, as YAML that `load_study` reads back to an equal study."""
    return yaml.safe_dump(study.canonical(), sort_keys=False, allow_unicode=True)
