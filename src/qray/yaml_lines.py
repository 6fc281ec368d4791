"""YAML with the line of every key, and without the silent overwriting of a key that stands there twice."""

from __future__ import annotations

from typing import Any

import yaml

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """Words that look like dates are words: a study has no dates, and one that does not exist is an error without a
    line."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parse_yaml(text: str) -> tuple[Any, dict[KeyPath, int]]:
    """The value of a YAML document, and the line (from 1) of each of its keys and items.

    Raises:
        yaml.YAMLError: not YAML. ValueError: a mapping names a key twice, or an alias stands inside of what it names; a
            line per fault, with its place.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        doubled: list[str] = []
        if node is not None:
            _walk(node, (), lines, doubled, ())
        if doubled:
            raise ValueError("\n".join(doubled))
        return (loader.construct_document(node) if node is not None else None), lines
    finally:
        loader.dispose()


def _walk(
    node: yaml.Node, at: KeyPath, lines: dict[KeyPath, int], doubled: list[str], above: tuple[yaml.Node, ...]
) -> None:
    if any(node is outer for outer in above):
        name = ".".join(map(str, at))
        doubled.append(f"line {node.start_mark.line + 1}: {name}: an alias of what it stands in")
        return
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            line = key.start_mark.line + 1
            if here in lines:
                name = ".".join(map(str, here))
                doubled.append(f"line {line}: {name}: stands in line {lines[here]} already")
                continue
            lines[here] = line
            _walk(value, here, lines, doubled, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*at, index), lines, doubled, (*above, node))
