"""QNNPACK runs all of a network in INT8 with the codes that were simulated, and leaves the process as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.networks import CONVOLUTIONS, RESIDUAL_ADDS, TARGET_MEAN, TARGET_STD, request, smooth_clips
from support.shelf import KEPT, VARIANTS, Shelf

from qray.engines import qnnpack
from qray.engines.artifact import Artifact
from qray.engines.registry import build_artifact, load_artifact
from qray.errors import QrayError
from qray.model.regressor import VideoRegressor, build_regressor
from qray.study import Model

PTQ = VARIANTS["ptq-qnnpack"]


@pytest.fixture
def artifact(shelf: Shelf) -> Artifact:
    return shelf[PTQ.name]


def graph_of(artifact: Artifact) -> object:
    """What its file says of itself, to PyTorch."""
    return torch.jit.load(str(artifact.folder / artifact.built.model_file)).inlined_graph


def test_every_convolution_and_every_add_runs_in_int8(artifact: Artifact) -> None:
    notes = artifact.built.notes
    assert (notes["int8_layers"], notes["int8_residual_adds"]) == (CONVOLUTIONS, RESIDUAL_ADDS)
    assert artifact.built.int8_mac_share > 0.999
    assert not notes["reduce_range"]


def test_what_is_packed_and_run_is_so_by_qnnpack_and_nothing_else_is(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch chooses by a setting of the process, which other engines have no use for."""
    chosen, before, load = [], torch.backends.quantized.engine, qnnpack._loaded

    def loaded(path: Path) -> object:
        program = load(path)
        chosen.append(torch.backends.quantized.engine)

        def call(clips: torch.Tensor) -> torch.Tensor:
            chosen.append(torch.backends.quantized.engine)
            return program(clips)

        return call

    monkeypatch.setattr(qnnpack, "_loaded", loaded)
    predict = load_artifact(artifact, allow_code=True)
    assert torch.backends.quantized.engine == before != "qnnpack"
    assert predict(smooth_clips(2, seed=8).numpy()).shape == (2,)
    assert torch.backends.quantized.engine == before
    assert chosen == ["qnnpack", "qnnpack"]


def test_its_program_gives_what_any_program_can_take(artifact: Artifact) -> None:
    program = torch.jit.load(str(artifact.folder / artifact.built.model_file))
    assert not program(smooth_clips(1)).requires_grad


def test_nothing_after_the_backbone_is_quantized(artifact: Artifact) -> None:
    assert qnnpack.quantized_in_tail(graph_of(artifact)) == []


def test_a_layer_that_is_to_be_kept_runs_in_floats(shelf: Shelf, tmp_path: Path) -> None:
    kept = PTQ.model_copy(update={"keep_fp32": (KEPT,)})
    built = build_artifact(request(kept, shelf.model), "k", tmp_path / "k")
    found, _ = qnnpack.executed_int8(graph_of(built))
    assert f"backbone.{KEPT}" not in found
    assert len(found) == CONVOLUTIONS - 1


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "mobilenet_v3_small"])
def test_all_of_a_mobilenet_runs_in_int8(backbone: str, tmp_path: Path) -> None:
    model = build_regressor(Model(backbone=backbone), TARGET_MEAN, TARGET_STD, seed=0).eval()
    notes = build_artifact(request(PTQ, model), "k", tmp_path / "k").built.notes
    assert notes["int8_layers"] == {"mobilenet_v2": 52, "mobilenet_v3_small": 52}[backbone]


def test_convolutions_over_time_are_refused_in_a_sentence(tmp_path: Path) -> None:
    model = VideoRegressor(Model(backbone="r3d_18"), TARGET_MEAN, TARGET_STD)
    with pytest.raises(QrayError, match="QNNPACK has no convolution over time"):
        qnnpack.build(request(PTQ, model), tmp_path)


def test_its_program_runs_only_where_that_is_allowed(artifact: Artifact) -> None:
    with pytest.raises(QrayError, match="native code"):
        load_artifact(artifact)
