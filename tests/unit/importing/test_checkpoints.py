"""Weights that others saved: found in whatever wraps them, matched by name and shape, and never run."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.imports import TheirFrameNetwork
from torch import nn

from qray.errors import QrayError, UsageError
from qray.importing.checkpoints import best_match, check, match, read_checkpoint


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return TheirFrameNetwork()


def _saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


WRAPPINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bare": lambda state: state,
    "DataParallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "compiled, in Lightning": lambda state: {"state_dict": {f"model._orig_mod.{k}": v for k, v in state.items()}},
    "nested": lambda state: {"checkpoint": {"model_state_dict": state}, "epoch": 3},
    "with all that a training leaves": lambda state: {
        "epoch": 3, "model": state, "best_loss": np.float64(3.2), "loss": np.float32(1.0), "seen": np.int64(7),
        "args": argparse.Namespace(lr=0.1),
        "optimizer": torch.optim.Adam([nn.Parameter(torch.zeros(2))]).state_dict(),
    },
}  # fmt: skip


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_found_in_whatever_wraps_them(network: nn.Module, tmp_path: Path, wrapping: str) -> None:
    state = network.state_dict()
    path = _saved(tmp_path / "model.pt", WRAPPINGS[wrapping](state))
    result = best_match(read_checkpoint(path), state, "top", None, path)
    assert result.found.keys() == state.keys()
    check(result, (), (), None)


def test_a_legacy_file_and_a_safetensors_file_are_read(network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    legacy = tmp_path / "legacy.pt"
    torch.save({"state_dict": state, "best": np.float64(1.5)}, legacy, _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "model.safetensors")
    for path in (legacy, tmp_path / "model.safetensors"):
        assert best_match(read_checkpoint(path), state, "top", None, path).missing == []


def test_an_average_beside_the_weights_must_be_named(network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    average = {"n_averaged": torch.tensor(5), **{f"module.{k}": v + 1 for k, v in state.items()}}
    path = _saved(tmp_path / "ema.pt", {"model": state, "model_ema": average})
    content = read_checkpoint(path)
    with pytest.raises(UsageError, match="--state-key model or --state-key model_ema"):
        best_match(content, state, "top", None, path)
    result = best_match(content, state, "top", "model_ema", path)
    check(result, (), (), None)
    with pytest.raises(UsageError, match="it has 'model', 'model_ema'"):
        best_match(content, state, "top", "ema", path)


def test_a_head_of_another_name_is_found_and_one_of_another_size_refused(network: nn.Module) -> None:
    state = network.state_dict()
    renamed = {key.replace("top.", "regressor.0."): value for key, value in state.items()}
    result = match(state, renamed, "top")
    assert result.found["top.weight"] == "regressor.0.weight"
    assert "'regressor.0'" in result.renamed[0]
    classifier = state | {"top.weight": torch.zeros(400, 32), "top.bias": torch.zeros(400)}
    result = match(state, classifier, "top")
    with pytest.raises(UsageError, match=r"top.weight is \[400, 32\], not \[1, 32\].*--fresh-head"):
        check(result, (), (), None)
    check(result, (), (), "top")


def test_a_partial_match_is_refused_unless_told_which(network: nn.Module) -> None:
    state = network.state_dict()
    partial = {key: value for key, value in state.items() if not key.startswith("layers.2")} | {"aux.w": torch.ones(3)}
    result = match(state, partial, "top")
    with pytest.raises(UsageError, match=r"missing: layers\.2\.0\.weight, .*unexpected: aux\.w"):
        check(result, (), (), None)
    check(result, ("layers.2.*",), ("aux.*",), None)
    with pytest.raises(QrayError, match="another --arch"):
        best_match({"state_dict": {"aux.w": torch.ones(3)}}, state, "top", None, Path("model.pt"))


class _Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def _numpy_object(marker: Path) -> Any:
    return np.array([_Hostile(marker)], dtype=object)


HOSTILE: dict[str, Callable[[Path, Path], None]] = {
    "torch.save": lambda path, marker: torch.save({"state_dict": {}, "extra": _Hostile(marker)}, path),
    "legacy": lambda path, marker: torch.save({"extra": _Hostile(marker)}, path, _use_new_zipfile_serialization=False),
    "plain pickle": lambda path, marker: path.write_bytes(pickle.dumps(_Hostile(marker))) and None,
    "array of objects": lambda path, marker: torch.save({"extra": _numpy_object(marker)}, path),
    "whole module": lambda path, marker: torch.save(TheirFrameNetwork(), path),
    "TorchScript": lambda path, marker: torch.jit.script(nn.Linear(2, 1)).save(str(path)),
    "text": lambda path, marker: path.write_text("hello") and None,
    "safetensors that are none": lambda path, marker: path.write_bytes(b"\xff" * 64) and None,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_in_a_sentence_and_runs_nothing(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / ("model.safetensors" if "safetensors" in kind else "model.pt")
    HOSTILE[kind](path, marker)
    with pytest.raises(QrayError) as caught:
        read_checkpoint(path)
    assert not marker.exists()
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_would_run_is_named(tmp_path: Path) -> None:
    path = _saved(tmp_path / "model.pt", {"extra": _Hostile(tmp_path / "ran")})
    with pytest.raises(QrayError, match=r"posix\.system.*save model\.state_dict\(\)"):
        read_checkpoint(path)
