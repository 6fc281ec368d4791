"""A variant computes in what its name says, whatever the engine likes best on this CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.networks import request
from support.shelf import VARIANTS, Shelf

from qray.engines import torch_export
from qray.engines.layers import export
from qray.engines.tail import PREFIX
from qray.measure.isa import BF16
from qray.study import Variant


def openvino_precisions(shelf: Shelf, name: str, tail: bool = False) -> set[str]:
    """Precisions in which the convolutions of the loaded model run, or what computes its tail."""
    from qray.engines import openvino

    artifact = shelf[name]
    method = "bf16" if BF16 in artifact.built.needs else "fp32"
    compiled: Any = openvino.compile_for_cpu(str(artifact.folder / artifact.built.model_file), method, 1)
    infos = [
        {key: str(value.value) for key, value in node.get_rt_info().items()}
        for node in compiled.get_runtime_model().get_ops()
    ]
    if tail:
        return {i["runtimePrecision"] for i in infos if PREFIX in i["originalLayersNames"]}
    return {i["runtimePrecision"] for i in infos if i["layerType"] == "Convolution"}


def test_openvino_runs_fp32_in_f32(shelf: Shelf) -> None:
    assert openvino_precisions(shelf, "fp32-openvino") == {"f32"}


@pytest.mark.parametrize("name", [name for name in VARIANTS if name == "bf16-openvino"])
def test_openvino_runs_bf16_in_bf16(shelf: Shelf, name: str) -> None:
    assert openvino_precisions(shelf, name) == {"bf16"}


@pytest.mark.parametrize("name", [name for name in VARIANTS if name == "bf16-openvino"])
def test_what_openvino_runs_after_pooling_over_time_stays_in_f32(shelf: Shelf, name: str) -> None:
    """Predictions of 8 bits are a comb of values, by which clips can no longer be told apart."""
    assert openvino_precisions(shelf, name, tail=True) == {"f32"}


def backbone_dtypes(program: torch.export.ExportedProgram) -> set[torch.dtype]:
    return {
        value.dtype for name, value in program.state_dict.items() if "backbone" in name and value.is_floating_point()
    }


def test_the_eager_bf16_artifact_holds_bf16(shelf: Shelf) -> None:
    artifact = shelf["bf16"]
    program = torch.export.load(str(artifact.folder / artifact.built.model_file))
    assert backbone_dtypes(program) == {torch.bfloat16}


def test_the_program_that_is_compiled_as_bf16_computes_bf16(shelf: Shelf) -> None:
    build = request(Variant(name="bf16-inductor", method="bf16", engine="inductor"), shelf.model)
    program = export(torch_export.to_half(shelf.model, "bf16"), build.example())
    outputs = {n.meta["val"].dtype for n in program.graph.nodes if "conv2d" in str(n.target)}
    assert outputs == {torch.bfloat16}


def test_the_head_stays_fp32_in_bf16(shelf: Shelf) -> None:
    artifact = shelf["bf16"]
    program = torch.export.load(str(artifact.folder / artifact.built.model_file))
    assert program.state_dict["head.weight"].dtype == torch.float32
