"""YAML with the line of every key, and without the silent overwriting of a key that stands there twice."""

from __future__ import annotations

from typing import Any

import yaml

KeyPath = tuple[str | int, ...]


def parse_yaml(text: str) -> tuple[Any, dict[KeyPath, int]]:
    """The value of a YAML document, and the line (from 1) of each of its keys and items.

    Raises:
        yaml.YAMLError: not YAML. ValueError: a mapping names a key twice; one line per key, both places named.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        doubled: list[str] = []
        if node is not None:
            _walk(node, (), lines, doubled)
        if doubled:
            raise ValueError("\n".join(doubled))
        return (loader.construct_document(node) if node is not None else None), lines
    finally:
        loader.dispose()


def _walk(node: yaml.Node, at: KeyPath, lines: dict[KeyPath, int], doubled: list[str]) -> None:
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
            _walk(value, here, lines, doubled)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*at, index), lines, doubled)
