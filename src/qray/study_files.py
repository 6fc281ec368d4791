"""Studies as YAML: find one by name or path, apply --set, and name the key and line of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qray.errors import UsageError
from qray.model.folder import read_model_yaml
from qray.storage.place import Place, is_uri
from qray.study import Study
from qray.yaml_text import KeyPath, YamlFault, dotted, parse_yaml, short


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


def _apply(tree: dict[str, Any], setting: str) -> KeyPath:
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise UsageError(f"--set {short(setting)!r}: expected key=value, for example --set training.epochs=3")
    try:
        value, _ = parse_yaml(text)
    except YamlFault as fault:
        raise UsageError("\n".join(f"--set {short(key)}: {said}" for said in str(fault).splitlines())) from None
    node: Any = tree
    path: list[str | int] = []
    for part in key.split("."):
        if path:
            # A section that the study leaves out, or sets to null, starts empty.
            if isinstance(node, dict) and node.get(path[-1]) is None:
                node[path[-1]] = {}
            node = node[path[-1]]
        path.append(_step(node, part, key))
    node[path[-1]] = value
    return tuple(path)


def _step(node: Any, part: str, key: str) -> str | int:
    """A part of a dotted key: an index where `node` is a list, else a name."""
    if isinstance(node, list):
        if not part.isdecimal() or int(part) >= len(node):
            raise UsageError(f"--set {key}: {part!r} is not an item of the list, whose items are 0 to {len(node) - 1}")
        return int(part)
    if not isinstance(node, dict):
        raise UsageError(f"--set {key}: there is nothing to set {part!r} in")
    return part


def _sentence(error: Any, lines: dict[KeyPath, int], origin: str, overrides: set[KeyPath]) -> str:
    # Pydantic names the kind of network that it took a model for.
    where: KeyPath = tuple(part for part in error["loc"] if part not in ("trained", "imported"))
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "no such key"
    elif error["type"] == "missing":
        message = "is required"
    elif "input" in error and not isinstance(error["input"], dict | list | tuple) and not is_uri(error["input"]):
        message += f" (found {short(repr(error['input']))})"
    key = dotted(where) or "the study"
    if any(where[: len(path)] == path for path in overrides):
        return f"--set {key}: {message}"
    # What is wrong may be in the file, or come of a key that --set changed below.
    changed = [dotted(path) for path in sorted(overrides, key=str) if path[: len(where)] == where]
    if changed:
        message += f" (after --set {', '.join(changed)})"
    line = next((lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in lines), 1)
    return f"{origin}, line {line}: {key}: {message}"


def parse_study(text: str, origin: str, settings: Sequence[str] = ()) -> Study:
    """Read a study from YAML text.

    Raises:
        UsageError: with one line per fault, each naming key and line (or the --set that caused it).
    """
    try:
        tree, lines = parse_yaml(text)
    except YamlFault as fault:
        raise UsageError("\n".join(f"{origin}, {said}" for said in str(fault).splitlines())) from None
    if tree is None:
        raise UsageError(f"{origin}, line 1: is empty; a study needs at least `name` and `variants`")
    if not isinstance(tree, dict):
        raise UsageError(f"{origin}, line 1: expected a mapping of keys, found {type(tree).__name__}")
    overrides = {_apply(tree, setting) for setting in settings}
    if isinstance(tree.get("model"), str):
        _take_model(tree, "" if ("model",) in overrides else f"{origin}, line {lines.get(('model',), 1)}: ")
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        faults = [_sentence(fault, lines, origin, overrides) for fault in error.errors()]
        raise UsageError("\n".join(faults)) from None


def _take_model(tree: dict[str, Any], where: str) -> None:
    """Put what a folder of `qray import` says into the place of its name, and into `clip` how its clips are read, of
    which a study may choose how many windows an evaluation averages."""
    try:
        model, clip = read_model_yaml(Path(tree["model"]).expanduser())
    except (UsageError, RuntimeError) as error:
        # The latter: ~NAME of nobody's.
        raise UsageError(f"{where}{error}") from None
    own, wanted = tree.get("clip"), clip.model_dump(mode="json")
    for key, value in own.items() if isinstance(own, dict) else ():
        if key in wanted and key != "eval_windows" and value != wanted[key]:
            raise UsageError(
                f"{where}clip.{key} is {value}, but {tree['model']} was imported with {wanted[key]}; leave `clip` out"
            )
    tree["model"] = model.model_dump(mode="json")
    tree["clip"] = wanted | own if isinstance(own, dict) else wanted


def load_study(
    name_or_path: str | None, settings: Sequence[str] = (), data: Path | Place | None = None, model: Path | None = None
) -> Study:
    """Load a named study or a YAML file, by default `quickstart`, or `imported` where a model is given; with `--set`
    overrides applied before validation. data, model: folders of this machine, or a place in an object store,
    instead of the study's own."""
    path = _locate(name_or_path or ("quickstart" if model is None else "imported"))
    # JSON is YAML, and quotes whatever a path may contain.
    places = [
        f"{key}={json.dumps(str(folder.resolve() if isinstance(folder, Path) else folder), ensure_ascii=False)}"
        for key, folder in (("data.dir", data), ("model", model)) if folder is not None
    ]  # fmt: skip
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    return parse_study(text, str(path), [*settings, *places])


def dump_study(study: Study) -> str:
    """The study as resolved, as YAML that `load_study` reads back to an equal study."""
    return yaml.safe_dump(study.canonical(), sort_keys=False, allow_unicode=True)
