"""YAML of studies and model folders: text, numbers, true and false, null, lists and mappings; whatever else YAML can
say is a fault that names its line, and so is a key that stands twice, of which YAML itself would take the last."""

from __future__ import annotations

from typing import Any, NamedTuple

import yaml

KeyPath = tuple[str | int, ...]

_YAML = "tag:yaml.org,2002:"
_SCALARS = {_YAML + kind for kind in ("null", "bool", "int", "float", "str")}
#: Aliases of aliases double with each line; no study has so much.
_MOST_VALUES = 100_000


class YamlFault(Exception):
    """Text that is not YAML, or says what is not taken; a line for each fault, which begins with its place."""


class _Loader(yaml.SafeLoader):
    """Words that look like dates are words: a study has no dates, and one that does not exist is an error without a
    line. And "=" is a word."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_YAML + "timestamp", _YAML + "value")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class Document(NamedTuple):
    """A value, and the line (from 1) of each of its keys and items."""

    value: Any
    lines: dict[KeyPath, int]


def short(text: str, most: int = 80) -> str:
    """One line of it, the middle of a long one left out."""
    text = text.replace("\r", "\\r").replace("\n", "\\n")
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 4 :]}"


def dotted(path: KeyPath) -> str:
    """A key as `--set` takes it."""
    return ".".join(short(str(part)) for part in path)


def parse_yaml(text: str) -> Document:
    """Read a YAML document.

    Raises:
        YamlFault: with the line of each fault.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        # Of text, PyYAML counts characters.
        line = text.count("\n", 0, error.position) + 1
        raise YamlFault(f"line {line}: not valid YAML: a character that is none of text (U+{error.character:04X})"
                        if isinstance(error.character, int) else f"line {line}: not valid YAML") from None  # fmt: skip
    try:
        node = loader.get_single_node()
        if node is None:
            return Document(None, {})
        lines = _lines(node, loader)
        return Document(loader.construct_document(node), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlFault(f"line {mark.line + 1 if mark else 1}: not valid YAML: {error.problem}") from None
    except RecursionError:
        raise YamlFault(f"line {loader.line + 1}: lists or mappings within each other, hundreds deep") from None


def _lines(root: yaml.Node, loader: _Loader) -> dict[KeyPath, int]:
    lines: dict[KeyPath, int] = {}
    faults: list[str] = []
    n_values = 0

    def walk(node: yaml.Node, at: KeyPath, above: tuple[yaml.Node, ...]) -> None:
        nonlocal n_values
        n_values += 1
        line = node.start_mark.line + 1
        place = f"line {line}: {dotted(at)}".rstrip(": ")
        if n_values > _MOST_VALUES:
            raise YamlFault(f"{place}: more than {_MOST_VALUES:,} values, aliases counted wherever they stand")
        if any(node is outer for outer in above):
            faults.append(f"{place}: an alias of what it stands in")
            return
        lines.setdefault(at, line)
        if isinstance(node, yaml.ScalarNode):
            if said := _unread(node, loader):
                faults.append(f"{place}: {said}")
        elif node.tag not in (_YAML + "seq", _YAML + "map"):
            faults.append(f"{place}: {_untaken(node.tag)}")
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, (*at, index), (*above, node))
        else:
            for key, value in node.value:
                pair(key, value, at, (*above, node))

    def pair(key: yaml.Node, value: yaml.Node, at: KeyPath, above: tuple[yaml.Node, ...]) -> None:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag not in (_YAML + "str", _YAML + "merge"):
            named = short(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            faults.append(f"line {line}: {dotted((*at, named))}: a key is a word, in quotes if YAML reads it as more")
            return
        here = (*at, str(key.value))
        if here in lines:
            faults.append(f"line {line}: {dotted(here)}: stands in line {lines[here]} already")
        else:
            lines[here] = line
            walk(value, here, above)

    walk(root, (), ())
    if faults:
        raise YamlFault("\n".join(faults))
    return lines


def _untaken(tag: str) -> str:
    return (
        f"{short(tag.replace(_YAML, '!!'))} is not taken; what is: text, numbers, true, false, null, lists and mappings"
    )


def _unread(node: yaml.ScalarNode, loader: _Loader) -> str | None:
    """Why a word or number cannot be read; None where it can."""
    if node.tag not in _SCALARS:
        return _untaken(node.tag)
    try:
        loader.construct_object(node)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError):
        # An !!int that is none, or one of more digits than Python reads.
        return f"{short(node.value, 40)!r} cannot be read as {node.tag.removeprefix(_YAML)}"
    return None
