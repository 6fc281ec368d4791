"""What a network consists of is read from its exported graph, whatever it is made of."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.networks import TINY, TINY_CLIP, request, smooth_clips, two_stages
from support.shelf import Shelf, build_in_own_process
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qray.engines.artifact import BuildRequest
from qray.engines.layers import (
    Layers,
    check_coverage,
    export,
    layer_names,
    layers_of,
    quantizable,
    read_layers,
    resolve_keep_fp32,
    total_macs,
)
from qray.engines.onnx_export import export_onnx, fold, folded, normalised
from qray.errors import QrayError
from qray.model.regressor import VideoRegressor
from qray.study import ClipSpec, Model, Variant

#: Of ResNet-18 at width 8, on 4 frames of 48 x 48: outputs times what each is the sum of.
RESNET_MACS = {
    "backbone.conv1": 4 * 24**2 * 8 * 3 * 7**2,
    **{f"backbone.layer1.{i}.conv{j}": 4 * 12**2 * 8 * 8 * 9 for i in (0, 1) for j in (1, 2)},
    "backbone.layer2.0.conv1": 4 * 6**2 * 16 * 8 * 9, "backbone.layer2.0.downsample.0": 4 * 6**2 * 16 * 8,
    **{f"backbone.layer2.{name}": 4 * 6**2 * 16 * 16 * 9 for name in ("0.conv2", "1.conv1", "1.conv2")},
    "backbone.layer3.0.conv1": 4 * 3**2 * 32 * 16 * 9, "backbone.layer3.0.downsample.0": 4 * 3**2 * 32 * 16,
    **{f"backbone.layer3.{name}": 4 * 3**2 * 32 * 32 * 9 for name in ("0.conv2", "1.conv1", "1.conv2")},
    "backbone.layer4.0.conv1": 4 * 2**2 * 64 * 32 * 9, "backbone.layer4.0.downsample.0": 4 * 2**2 * 64 * 32,
    **{f"backbone.layer4.{name}": 4 * 2**2 * 64 * 64 * 9 for name in ("0.conv2", "1.conv1", "1.conv2")},
    "head": 128,
}  # fmt: skip
RESNET_NAMES = (
    "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.add", "layer1.1.conv1", "layer1.1.conv2", "layer1.1.add",
    "layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0", "layer2.0.add",
    "layer2.1.conv1", "layer2.1.conv2", "layer2.1.add",
    "layer3.0.conv1", "layer3.0.conv2", "layer3.0.downsample.0", "layer3.0.add",
    "layer3.1.conv1", "layer3.1.conv2", "layer3.1.add",
    "layer4.0.conv1", "layer4.0.conv2", "layer4.0.downsample.0", "layer4.0.add",
    "layer4.1.conv1", "layer4.1.conv2", "layer4.1.add", "avgpool",
)  # fmt: skip
CLIP = ClipSpec(frames=4, image_size=16, sampling="uniform")


class Residual(nn.Module):
    """A block of one convolution, whose bias batch-norm follows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv3d(8, 8, 3, padding=1), nn.BatchNorm3d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class Attention(nn.Module):
    """One head over time, (B, T, 12); one projection is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.mix = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.mix(x)).chunk(3, -1)
        return x + self.mix((query @ key.transpose(1, 2)).softmax(-1) @ value)


class VideoBackbone(nn.Module):
    """Frames (B*4, 3, 16, 16) -> features (B*4, 12), which see the other frames of their clip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 8, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False), nn.BatchNorm3d(8), nn.ReLU()
        )
        self.block, self.pool = Residual(), nn.AvgPool3d((1, 8, 8))
        self.temporal, self.norm = nn.Conv1d(8, 12, 3, padding=1, bias=False), nn.BatchNorm1d(12)
        self.attention = Attention()
        self.place = nn.Parameter(torch.linspace(-1, 1, 4).view(1, 4, 1))

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.unflatten(0, (-1, 4)).transpose(1, 2)
        x = self.pool(self.block(self.stem(x))).flatten(2)
        return self.attention(self.norm(self.temporal(x)).transpose(1, 2) + self.place).flatten(0, 1)


VIDEO_MACS = {
    "backbone.stem.0": 8 * 4 * 8**2 * 3 * 9,
    "backbone.block.conv": 8 * 4 * 8**2 * 8 * 27,
    "backbone.temporal": 12 * 4 * 8 * 3,
    "backbone.attention.mix": 2 * 4 * 12 * 12,
    "backbone.attention.qkv": 4 * 36 * 12,
    "backbone.attention.matmul": 4 * 4 * 12,
    "backbone.attention.matmul.1": 4 * 12 * 4,
    "head": 24,
}


def video_model() -> VideoRegressor:
    """A regressor of another backbone, with statistics that differ from one channel to the next."""
    torch.manual_seed(0)
    model = VideoRegressor(Model(width=4, pooling="mean_std", head_init="default"), 55.0, 12.0)
    model.backbone, model.head = VideoBackbone(), nn.Linear(24, 1)  # type: ignore[assignment]
    with torch.no_grad():
        for _ in range(3):
            model.train()(smooth_clips(4, CLIP))
        for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
    return model.eval()


def asked(model: VideoRegressor) -> BuildRequest:
    return BuildRequest(Variant(name="fp32", method="fp32", engine="eager"), model, CLIP)


@pytest.fixture(scope="module")
def video() -> VideoRegressor:
    return video_model()


@pytest.fixture(scope="module")
def program(video: VideoRegressor) -> torch.export.ExportedProgram:
    return export(video, asked(video).example())


@pytest.fixture(scope="module")
def layers(program: torch.export.ExportedProgram) -> Layers:
    return read_layers(program)


@pytest.fixture(scope="module")
def resnet() -> Layers:
    return layers_of(VideoRegressor(TINY).eval(), TINY_CLIP)


def macs(layers: Layers) -> dict[str, int]:
    return {layer.name: layer.macs for layer in layers if layer.macs}


def counted(model: VideoRegressor, clip: ClipSpec) -> float:
    """Multiply-accumulates of one clip, as PyTorch counts them when it runs the model."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(smooth_clips(1, clip))
    return counter.get_total_flops() / 2


def test_a_resnet_costs_what_its_shapes_say(resnet: Layers) -> None:
    assert macs(resnet) == RESNET_MACS


def test_a_resnets_layers_have_the_names_they_have_always_had(resnet: Layers) -> None:
    assert tuple(layer.short for layer in quantizable(resnet)) == RESNET_NAMES


def test_a_plan_needs_neither_weights_nor_a_clip() -> None:
    with torch.device("meta"):
        assert layer_names(VideoRegressor(Model(width=64))) == RESNET_NAMES


def test_a_resnets_head_alone_is_its_tail(resnet: Layers) -> None:
    assert [layer.name for layer in resnet if layer.tail] == ["head"]


@pytest.mark.parametrize("network", ["resnet", "video"])
def test_both_of_torchs_ways_to_export_give_the_same_layers(network: str, shelf: Shelf, video: VideoRegressor) -> None:
    build = shelf.request("fp32") if network == "resnet" else asked(video)
    batch = ({0: torch.export.Dim.DYNAMIC},)
    dynamo = torch.export.export(build.model, (build.example(),), dynamic_shapes=batch, strict=True)
    ways = [read_layers(program) for program in (dynamo, export(build.model, build.example()))]
    by_dynamo, by_tracing = ([replace(layer, nodes=()) for layer in layers] for layers in ways)
    assert by_dynamo == by_tracing


def test_another_network_costs_what_its_shapes_say(layers: Layers) -> None:
    assert macs(layers) == VIDEO_MACS


@pytest.mark.parametrize("network", ["resnet", "video"])
def test_the_total_is_what_pytorch_counts(network: str, shelf: Shelf, video: VideoRegressor) -> None:
    model, clip = (shelf.model, TINY_CLIP) if network == "resnet" else (video, CLIP)
    assert total_macs(layers_of(model, clip)) == counted(model, clip)


def test_adds_of_two_activations_are_residual_and_no_others(layers: Layers) -> None:
    assert [layer.name for layer in layers if layer.kind == "add"] == ["backbone.block.add", "backbone.attention.add"]


def test_pools_are_named_by_their_modules(layers: Layers) -> None:
    assert [layer.name for layer in layers if layer.kind == "pool"] == ["backbone.pool"]


def test_what_multiplies_by_weights_can_be_kept(layers: Layers) -> None:
    names = ("temporal", "attention.mix", "head", "backbone.stem.0")
    assert resolve_keep_fp32(layers, names) == (
        "backbone.temporal", "backbone.attention.mix", "head", "backbone.stem.0"
    )  # fmt: skip


def test_what_multiplies_activations_cannot(layers: Layers) -> None:
    with pytest.raises(QrayError, match=r"no layer attention\.matmul; the model has stem\.0, block\.conv, temporal"):
        resolve_keep_fp32(layers, ("attention.matmul",))


def test_every_layer_with_weights_of_the_backbone_is_to_be_int8(layers: Layers) -> None:
    inside = {name for name in VIDEO_MACS if name != "head" and "matmul" not in name}
    share = (total_macs(layers) - 24 - 2 * 4 * 4 * 12) / total_macs(layers)
    assert check_coverage(layers, inside, 2, ()) == pytest.approx(share)
    with pytest.raises(QrayError, match=r"1 of 5 convolutions in FP32: backbone\.attention\.qkv"):
        check_coverage(layers, inside - {"backbone.attention.qkv"}, 2, ())
    with pytest.raises(QrayError, match=r"after pooling over time: head"):
        check_coverage(layers, inside | {"head"}, 2, ())


def test_batch_norms_are_paired_with_their_convolutions(program: torch.export.ExportedProgram) -> None:
    found = [
        tuple(list(node.meta["nn_module_stack"].values())[-1][0] for node in pair) for pair in normalised(program.graph)
    ]
    assert found == [
        ("backbone.stem.0", "backbone.stem.1"), ("backbone.block.conv", "backbone.block.norm"),
        ("backbone.temporal", "backbone.norm"),
    ]  # fmt: skip


@pytest.mark.parametrize("network", ["resnet", "video"])
def test_a_folded_network_is_the_same_function(network: str, shelf: Shelf, video: VideoRegressor) -> None:
    build = shelf.request("fp32") if network == "resnet" else asked(video)
    before = copy.deepcopy(build.model.state_dict())
    program, _ = folded(build)
    clips = smooth_clips(3, build.clip, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(clips)[0], build.model(clips), rtol=1e-4, atol=1e-4)
    assert not program.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    torch.testing.assert_close(build.model.state_dict(), before, rtol=0, atol=0)


def test_the_scale_of_the_channels_goes_into_a_convolution_that_reads_frames(shelf: Shelf) -> None:
    program, _ = folded(shelf.request("fp32"))
    assert "channel_scale" not in program.state_dict
    assert {name.rpartition(".")[2] for name, _ in program.named_parameters()} == {"weight", "bias"}
    assert not [name for name in program.state_dict if ".bn" in name]


def test_what_something_else_reads_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.norm = nn.Conv3d(3, 2, 1), nn.BatchNorm3d(2)

        def forward(self, clips: Tensor) -> Tensor:
            made = self.backbone(clips.float().permute(0, 4, 1, 2, 3))
            return made + self.norm(made)

    model = Twice().eval()
    program = export(model, smooth_clips(2, CLIP))
    fold(program)
    assert len(program.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)) == 1


def test_onnx_runtime_is_told_of_the_same_adds(video: VideoRegressor, tmp_path: Path) -> None:
    import onnx

    from qray.engines import onnx_quantize, onnxruntime

    build, path = asked(video), tmp_path / "model.onnx"
    export_onnx(build, path)
    graph = onnx.load(str(path))
    assert len(onnx_quantize._residual_adds(graph.graph)) == 2
    assert {onnxruntime.layer_of(node.input[1]) for node in graph.graph.node if node.op_type == "Conv"} == {
        "backbone.stem.0", "backbone.block.conv", "backbone.temporal"
    }  # fmt: skip
    clips = smooth_clips(3, CLIP, seed=5)
    with torch.no_grad():
        expected = video(clips).numpy()
    np.testing.assert_allclose(onnxruntime.runner(onnxruntime.session_of(path, 1))(clips.numpy()), expected, rtol=1e-4)


def test_openvino_names_the_same_layers_and_adds(video: VideoRegressor) -> None:
    from qray.engines import openvino

    names = [node.get_friendly_name() for node in openvino._named_model(asked(video))[0].get_ordered_ops()]
    assert [name for name in names if name.startswith("residual.")] == ["residual.0", "residual.1"]
    assert {name for name in names if name in VIDEO_MACS} == {
        "backbone.stem.0", "backbone.block.conv", "backbone.temporal"
    }  # fmt: skip


def test_openvino_keeps_additions_and_pools_in_fp32_too(tmp_path: Path) -> None:
    import openvino as ov

    variant = Variant(name="p", method="ptq", engine="openvino", keep_fp32=("layer1.1.add", "avgpool"))
    build_in_own_process((request(variant, two_stages(), batches=1), tmp_path / "p"))
    quantized = {
        node.get_friendly_name() for node in ov.Core().read_model(tmp_path / "p" / "model.xml").get_ordered_ops()
        if any(value.get_node().get_type_name() == "FakeQuantize" for value in node.input_values())
    }  # fmt: skip
    assert {name for name in quantized if name.startswith(("residual.", "pool."))} == {
        "residual.0", "residual.2", "residual.3"
    }  # fmt: skip
