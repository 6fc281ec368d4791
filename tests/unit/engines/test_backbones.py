"""Networks with depthwise convolutions, squeeze-and-excitation and hard swish run in INT8 like a ResNet."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from support.networks import TARGET_MEAN, TARGET_STD, Forms, request, smooth_clips, toy_batches
from support.shelf import build_in_own_process
from torch import nn

from qray.engines.artifact import Artifact, BuildRequest, read_artifact
from qray.engines.parity import kernel_share
from qray.engines.pt2e import (
    QatSettings,
    prepare_qat,
    quantize_static,
    quantized,
    quantized_in_tail,
    set_training,
)
from qray.engines.registry import build_artifact
from qray.engines.sensitivity import layered
from qray.errors import QrayError
from qray.model.regressor import VideoRegressor, build_regressor
from qray.model.training import FitSettings, fit
from qray.study import ClipSpec, Model, Training, Variant

CLIP = ClipSpec(frames=4, image_size=64)
STEPS = 40
#: Convolutions of MobileNetV3-small, and its residual adds (Howard et al. 2019, table 2).
CONVOLUTIONS, ADDS = 52, 6


@cache
def trained() -> VideoRegressor:
    """A narrow MobileNetV3 that has learnt something: with random weights its activations vanish or explode."""
    model = build_regressor(Model(backbone="mobilenet_v3_small", width=8), TARGET_MEAN, TARGET_STD, seed=0)
    training = Training(epochs=1, batch_size=8, lr=3e-3, augment=None)
    settings = FitSettings(training, STEPS, TARGET_STD, seed=0)
    list(fit(model.train(), toy_batches(STEPS, clip=CLIP), settings))
    return model.eval()


@pytest.mark.slow
def test_what_nncf_leaves_in_fp32_is_named(tmp_path: Path) -> None:
    """Its rule is for squeeze and excitation, two convolutions in each of nine blocks."""
    build = request(Variant(name="ptq", method="ptq", engine="openvino"), trained(), CLIP)
    build_in_own_process((build, tmp_path / "ptq"))
    built = read_artifact(tmp_path / "ptq").built
    left = built.notes["fp32_layers"]
    assert len(left) == 18
    assert all(name.endswith((".fc1", ".fc2")) for name in left)
    assert built.notes["int8_layers"] == CONVOLUTIONS - len(left)
    assert 0.9 < built.int8_mac_share < 1
    share = kernel_share(built.notes)
    assert share is not None
    assert share < 0.5


def on_clips() -> VideoRegressor:
    """A small network of three-dimensional convolutions with a residual add."""
    torch.manual_seed(0)
    model = VideoRegressor(Model(backbone="r3d_18"), TARGET_MEAN, TARGET_STD)
    network: Any = model.backbone
    network.layer2 = network.layer3 = network.layer4 = nn.Identity()
    model.head = nn.Linear(64, 1)
    with torch.no_grad():
        for seed in range(3):
            model.train()(smooth_clips(4, CLIP, seed))
    return model.eval()


def in_forms() -> VideoRegressor:
    """A network of all those forms."""
    model = VideoRegressor(Model(backbone="r3d_18"), TARGET_MEAN, TARGET_STD)
    torch.manual_seed(0)
    model.backbone, model.head = Forms(), nn.Linear(32, 1)
    with torch.no_grad():
        for seed in range(3):
            model.train()(smooth_clips(4, CLIP, seed))
    return model.eval()


def _built(model: VideoRegressor, folder: Path, engine: str, **settings: Any) -> Artifact:
    variant = Variant.model_validate({"name": "ptq", "method": "ptq", "engine": engine} | settings)
    build_in_own_process((request(variant, model, CLIP), folder))
    return read_artifact(folder)


def _as_simulated(artifact: Artifact) -> bool:
    share = kernel_share(artifact.built.notes)
    return share is not None and share < 0.5


@pytest.mark.slow
def test_convolutions_over_time_run_in_openvino_as_they_were_simulated(tmp_path: Path) -> None:
    """Where the plugin knew no number of channels, it shifted all by the first one's mean: 0.7 to 10 of what
    quantization cost mc3_18, s3d and r3d_18."""
    assert _as_simulated(_built(on_clips(), tmp_path / "ptq", "openvino"))


@pytest.mark.slow
def test_wider_ranges_leave_less_outside_in_openvino(tmp_path: Path) -> None:
    plain = _built(on_clips(), tmp_path / "plain", "openvino")
    remedies = {"observer": "mse", "range_margin": 1.25, "bias_correction": True}
    remedied = _built(on_clips(), tmp_path / "remedied", "openvino", **remedies)
    assert _as_simulated(remedied)
    assert remedied.built.notes["outside_share"] < plain.built.notes["outside_share"]


@pytest.mark.slow
def test_convolutions_over_time_run_in_aotinductor_as_they_were_simulated(tmp_path: Path) -> None:
    """Torchao marks and lowers convolutions of two dimensions alone."""
    artifact = _built(in_forms(), tmp_path / "ptq", "inductor")
    assert artifact.built.notes["int8_layers"] == 7
    assert artifact.built.notes["int8_residual_adds"] == 2
    assert artifact.built.int8_mac_share > 0.99
    assert _as_simulated(artifact)


@pytest.mark.slow
def test_they_have_4_bits_roundings_and_layers_in_fp32_too(tmp_path: Path) -> None:
    built = _built(
        in_forms(), tmp_path / "ptq", "inductor", weight_bits=4, rounding="adaround", keep_fp32=["there"]
    ).built  # fmt: skip
    assert built.notes["int8_layers"] == 6
    assert 0.5 < built.int8_mac_share < 0.99
    assert _as_simulated(read_artifact(tmp_path / "ptq"))


def test_each_layer_over_time_can_be_quantized_alone() -> None:
    network = layered(request(Variant(name="ptq", method="ptq", engine="inductor"), on_clips(), CLIP))
    assert [name for name in network.switches if network.macs[name]] == [
        "stem.0", "layer1.0.conv1.0", "layer1.0.conv2.0", "layer1.1.conv1.0", "layer1.1.conv2.0"
    ]  # fmt: skip
    clips = smooth_clips(4, CLIP, seed=300)
    with torch.no_grad():
        values, before, _ = network.whole(clips)
        for name in network.switches:
            network.quantize([name])
            assert not torch.equal(network.after(name, values)[0], before)
            network.quantize([name], False)


def test_a_convolution_over_time_after_the_backbone_stays_in_float() -> None:
    model = on_clips()
    model.head = nn.Sequential(nn.Unflatten(1, (64, 1, 1, 1)), nn.Conv3d(64, 1, 1))
    build = request(Variant(name="ptq", method="ptq", engine="inductor"), model, CLIP, batches=1)
    assert quantized_in_tail(quantize_static(build)) == []


def test_qat_over_time_trains_with_batch_norm_folded() -> None:
    """Torchao has batch-norm learn on beside convolutions of one and two dimensions alone, and would leave it there."""
    model, settings = on_clips(), QatSettings(reduce_range=True)
    prepared = prepare_qat(model, smooth_clips(2, CLIP), settings)
    prepared(smooth_clips(4, CLIP, seed=1)).sum().backward()
    trained = [p for p in prepared.parameters() if p.dim() == 5 and p.grad is not None and p.grad.any()]
    assert len(trained) == 5
    set_training(prepared, False)
    variant = Variant(name="qat", method="qat", engine="inductor")
    state = prepared.state_dict()
    build = BuildRequest(variant, model, CLIP, qat_state=state, qat_settings=settings.model_dump(), isa="avx2")
    converted: Any = quantized(build)
    targets = [str(node.target) for node in converted.graph.nodes]
    assert not any("batch_norm" in target for target in targets)
    assert sum("dequantize_per_channel" in target for target in targets) == 5


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("inductor", marks=pytest.mark.slow)])
def test_all_of_a_mobilenet_runs_in_int8_as_it_was_simulated(engine: str, tmp_path: Path) -> None:
    build = request(Variant(name="ptq", method="ptq", engine=engine), trained(), CLIP)
    built = build_artifact(build, "ptq", tmp_path / "ptq").built
    assert built.notes["int8_layers"] == CONVOLUTIONS
    assert built.notes["int8_residual_adds"] >= ADDS
    assert built.int8_mac_share > 0.99
    share = kernel_share(built.notes)
    assert share is not None
    assert share < 0.5


@pytest.mark.parametrize(
    ("engine", "device"), [("triton", "cuda"), pytest.param("executorch", "cpu", marks=pytest.mark.slow)]
)
def test_all_of_a_mobilenet_runs_in_int8_with_the_codes_that_were_simulated(
    engine: str, device: Literal["cpu", "cuda"], tmp_path: Path
) -> None:
    """Of engine triton by the reference of its operator, which is what a GPU computes."""
    build = request(Variant(name="ptq", method="ptq", engine=engine, device=device), trained(), CLIP)
    build_in_own_process((build, tmp_path / "ptq"))
    built = read_artifact(tmp_path / "ptq").built
    assert built.notes["int8_layers"] == CONVOLUTIONS
    assert built.notes["int8_residual_adds"] >= ADDS
    assert built.int8_mac_share > 0.99
    # Of so short a training quantization costs thousandths of a point, of which a single code is a large share.
    assert built.notes["kernel_rms"] < 0.01 * TARGET_STD


def test_executorch_has_no_convolutions_over_time_and_says_so(tmp_path: Path) -> None:
    build = request(Variant(name="fp32", method="fp32", engine="executorch"), on_clips(), CLIP)
    with pytest.raises(QrayError, match="XNNPACK has no kernel for convolutions over time"):
        build_artifact(build, "fp32", tmp_path / "fp32")
