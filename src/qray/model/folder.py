"""The folder that `qray import` leaves: model.yaml, weights.safetensors, and network.pt2 where the network is a graph.
Told without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qray.errors import UsageError
from qray.study_model import ClipSpec, Imported
from qray.yaml_text import YamlFault, dotted, parse_yaml, short

MODEL, WEIGHTS, NETWORK = "model.yaml", "weights.safetensors", "network.pt2"
FORMAT = 1


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_files(folder: Path) -> list[Path]:
    """What of a folder is the model, whatever else lies there."""
    return [path for name in (MODEL, WEIGHTS, NETWORK) if (path := folder / name).is_file()]


def write_model_yaml(folder: Path, model: Imported, clip: ClipSpec, found: dict[str, Any]) -> None:
    """Describe a folder: the model, how its clips are read, and what import found."""
    content = {
        "format": FORMAT,
        "model": model.model_dump(mode="json", exclude={"folder"}),
        "clip": clip.model_dump(mode="json"),
        **found,
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / MODEL).write_text(
        f"# Written by qray import; a study names this folder: `model: FOLDER`.\n{text}", "utf-8"
    )


def read_model_yaml(folder: Path) -> tuple[Imported, ClipSpec]:
    """The model of a folder, and how its clips are read.

    Raises:
        UsageError: it is no folder of `qray import`, or another version's.
    """
    path = folder / MODEL
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); import the model again") from None
    except PermissionError:
        raise
    except (OSError, ValueError):
        # A name that no file can have holds none either.
        raise UsageError(
            f"model: {short(str(folder))} holds no {MODEL}; name a folder that `qray import ... --out FOLDER` made"
        ) from None
    try:
        content = parse_yaml(text).value
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UsageError(f"{path}: not of the format that this qray reads ({FORMAT}); import the model again")
        model = Imported.model_validate(content["model"] | {"folder": str(folder.resolve())})
        return model, ClipSpec.model_validate(content["clip"])
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{path}: {dotted(first['loc'])}: {first['msg']}; import the model again") from None
    except YamlFault as fault:
        raise UsageError(f"{path}, {str(fault).splitlines()[0]}; import the model again") from None
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: not readable ({error}); import the model again") from None
