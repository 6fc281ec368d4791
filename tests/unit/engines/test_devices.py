"""An artifact runs where its engine can, and is refused elsewhere in a sentence; tests/gpu has what takes a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.networks import realistic_model, request
from support.shelf import VARIANTS, Shelf
from torch.export.passes import move_to_device_pass

from qray.engines import torch_compile
from qray.engines.catalog import ENGINES
from qray.engines.registry import build_artifact, load_artifact
from qray.errors import QrayError


@pytest.mark.parametrize("name", ["fp32-inductor", "fp32-onnxruntime", "fp32-openvino"])
def test_an_engine_of_the_cpu_is_refused_on_a_gpu(shelf: Shelf, name: str) -> None:
    with pytest.raises(QrayError, match=f"fp32 of engine {VARIANTS[name].engine} runs on cpu, not on cuda"):
        load_artifact(replace(shelf["fp32"], variant=VARIANTS[name]), device="cuda")


def test_dynamic_int8_is_refused_on_a_gpu(shelf: Shelf) -> None:
    with pytest.raises(QrayError, match="dynamic of engine eager runs on cpu, not on cuda"):
        load_artifact(shelf["dynamic"], device="cuda")


def test_a_gpu_that_is_not_there_is_said(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(QrayError, match="torch finds no GPU to run it on"):
        load_artifact(shelf["fp32"], device="cuda")


def test_every_engine_runs_somewhere_and_most_on_the_cpu_when_asked(shelf: Shelf) -> None:
    assert all(engine.devices for engine in ENGINES.values())
    assert [name for name, engine in ENGINES.items() if "cpu" not in engine.devices] == [
        "compile", "triton", "tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt",
    ]  # fmt: skip
    predicted = load_artifact(shelf["fp32"], device="cpu")(shelf.clips)
    np.testing.assert_allclose(predicted, shelf.expected, rtol=1e-4)


def test_what_is_compiled_as_it_loads_predicts_the_same(shelf: Shelf, tmp_path: Path) -> None:
    """By the compiler of the CPU, a network of one stage; tests/gpu has a GPU's."""
    model = realistic_model(stages=1)
    artifact = build_artifact(request(VARIANTS["fp32"], model), "fp32", tmp_path / "fp32")
    predict = torch_compile.load(artifact.folder, artifact.built, 1, "cpu")
    with torch.no_grad():
        expected = model(torch.from_numpy(shelf.clips)).numpy()
    np.testing.assert_allclose(predict(shelf.clips), expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_nothing_of_a_float_program_stays_behind_when_it_moves(shelf: Shelf, name: str) -> None:
    """Proved on torch's device without data: an operator that mixed devices would raise."""
    artifact = shelf[name]
    program = move_to_device_pass(torch.export.load(str(artifact.folder / artifact.built.model_file)), "meta")
    clips = torch.from_numpy(shelf.clips[:3]).to("meta")
    with torch.inference_mode():
        predicted = program.module()(clips)
    assert (predicted.device.type, predicted.shape) == ("meta", (3,))
