"""One layer quantized is what the engine's own flow would make of one layer, and nothing else is touched."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import CONVOLUTIONS, RESIDUAL_ADDS, TINY_CLIP, smooth_clips
from support.shelf import Shelf
from torch import nn
from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

from qray.engines import pt2e
from qray.engines.artifact import BuildRequest
from qray.engines.layers import layer_names
from qray.engines.pt2e import SCALE_EPSILON, _config, quantize_static
from qray.engines.sensitivity import LayeredNetwork, layered, measure_layers
from qray.errors import QrayError
from qray.model.graph_network import with_sources
from qray.model.regressor import VideoRegressor
from qray.study import Variant

CLIPS = smooth_clips(5, seed=7)


def request(model: VideoRegressor, brightness: float = 1.0, **settings: Any) -> BuildRequest:
    variant = Variant.model_validate({"name": "ptq", "method": "ptq", "engine": "inductor", **settings})
    clips = [smooth_clips(4, seed=200 + i) for i in range(3)]
    return BuildRequest(variant, model, TINY_CLIP, [(c * brightness).to(torch.uint8) for c in clips])


@pytest.fixture(scope="module")
def model(shelf: Shelf) -> VideoRegressor:
    return shelf.model


@pytest.fixture(scope="module")
def network(model: VideoRegressor) -> LayeredNetwork:
    """Every layer is off before and after each test."""
    return layered(request(model))


def measure(network: LayeredNetwork, *layers: str, missing: bool = False) -> dict[str, Any]:
    """Measure layers on five clips; the sixth never comes if `missing`."""
    return measure_layers(network, [(np.arange(3), CLIPS[:3]), (np.arange(3, 5), CLIPS[3:])], layers, 5 + missing)


def predict(module: nn.Module) -> np.ndarray:
    with torch.no_grad():
        return module(CLIPS).double().numpy()


def assert_same_effect(predicted: np.ndarray, expected: np.ndarray, fp32: np.ndarray) -> None:
    """Equal but for rounding: small beside what quantization does to the predictions."""
    effect = np.abs(expected - fp32).max()
    assert effect > 0
    assert np.abs(predicted - expected).max() < 0.02 * effect


def only(model: VideoRegressor, layer: str) -> nn.Module:
    """The quantizer's own way: a configuration for one module, converted."""
    build = request(model)
    activations, weights = (kind.with_args(eps=SCALE_EPSILON) for kind in (HistogramObserver, PerChannelMinMaxObserver))
    config = _config(8, build.reduce_range, activations, weights, False)
    quantizer = X86InductorQuantizer()
    quantizer.set_module_name_qconfig(f"backbone.{layer}", config)
    prepared = prepare_pt2e(with_sources(pt2e.export(model, build.example()).module()), quantizer)
    with torch.no_grad():
        for clips in build.calibration:
            prepared(clips)
    return convert_pt2e(prepared)


def test_the_layers_are_the_convolutions_the_residual_adds_and_the_pool(model: VideoRegressor) -> None:
    names = layer_names(model)
    adds = [name for name in names if name.endswith(".add")]
    assert (len(names), len(adds)) == (CONVOLUTIONS + RESIDUAL_ADDS + 1, RESIDUAL_ADDS)
    assert (names[0], names[-1], len(set(names))) == ("conv1", "avgpool", len(names))


def test_with_everything_off_it_is_the_fp32_network(network: LayeredNetwork, model: VideoRegressor) -> None:
    np.testing.assert_allclose(measure(network)["fp32"], predict(model), rtol=1e-5)


def test_with_everything_on_it_is_what_ptq_ships(network: LayeredNetwork, model: VideoRegressor) -> None:
    assert_same_effect(np.array(measure(network)["all"]), predict(quantize_static(request(model))), predict(model))


@pytest.mark.parametrize("layer", ["conv1", "layer1.1.conv1", "layer2.0.downsample.0", "layer2.1.conv2"])
def test_a_layer_alone_is_what_the_quantizer_makes_of_it(
    layer: str, network: LayeredNetwork, model: VideoRegressor
) -> None:
    """The input of layer1.1.conv1 is a block's input too: its residual must stay FP32."""
    alone = measure(network, layer)["layers"][layer]["alone"]["predictions"]
    assert_same_effect(np.array(alone), predict(only(model, layer)), predict(model))


def test_all_but_a_layer_is_ptq_that_keeps_it_in_fp32(network: LayeredNetwork, model: VideoRegressor) -> None:
    rest = measure(network, "layer2.1.conv1")["layers"]["layer2.1.conv1"]["all_but"]["predictions"]
    kept = quantize_static(request(model, keep_fp32=["layer2.1.conv1"]))
    assert_same_effect(np.array(rest), predict(kept), predict(model))


def test_a_pass_that_starts_from_kept_activations_ends_as_a_whole_one(network: LayeredNetwork) -> None:
    with torch.no_grad():
        values, fp32, _ = network.whole(CLIPS)
        for layer in network.switches:
            network.quantize([layer])
            partial, features = network.after(layer, values)
            _, predictions, whole_features = network.whole(CLIPS)
            network.quantize([layer], False)
            torch.testing.assert_close(partial, predictions, rtol=0, atol=0)
            torch.testing.assert_close(features, whole_features, rtol=0, atol=0)
            assert not torch.equal(partial, fp32), f"{layer} changes nothing"


def test_a_clip_that_never_came_is_null(network: LayeredNetwork) -> None:
    measured = measure(network, "conv1", missing=True)
    assert measured["fp32"][5] is measured["layers"]["conv1"]["alone"]["predictions"][5] is None
    assert None not in measured["fp32"][:5]


def test_fewer_weight_bits_make_a_layer_noisier(network: LayeredNetwork, model: VideoRegressor) -> None:
    coarse = measure(layered(request(model, weight_bits=4)), "layer2.0.conv1")["layers"]["layer2.0.conv1"]
    fine = measure(network, "layer2.0.conv1")["layers"]["layer2.0.conv1"]
    assert coarse["alone"]["noise"] > 10 * fine["alone"]["noise"]


def test_brighter_clips_than_were_observed_are_clipped(model: VideoRegressor) -> None:
    dim = layered(request(model, brightness=0.4, observer="minmax"))
    found = measure(dim, "conv1")["layers"]["conv1"]["range"]
    assert found["seen_high"] > found["observer_high"]
    assert found["clipped_share"] > 0.05


def test_nothing_is_clipped_where_the_observer_saw_the_same_clips(model: VideoRegressor) -> None:
    variant = Variant(name="ptq", method="ptq", engine="inductor", observer="minmax")
    network = layered(BuildRequest(variant, model, TINY_CLIP, [CLIPS]))
    ranges = [layer["range"] for layer in measure(network, *network.switches)["layers"].values()]
    assert [found["clipped_share"] for found in ranges] == [0.0] * len(network.switches)


def test_convolutions_have_their_macs_and_adds_have_none(network: LayeredNetwork) -> None:
    assert network.macs["layer1.0.conv1"] == TINY_CLIP.frames * 12 * 12 * 8 * 8 * 9
    assert network.macs["layer1.0.add"] == 0


def test_signal_and_noise_are_sums_of_squares_of_the_pooled_features(network: LayeredNetwork) -> None:
    """Of the head's input: its two halves are mean and deviation over time, 16 channels each."""
    with torch.no_grad():
        _, _, features = network.whole(CLIPS)
    assert features.shape == (5, 32)
    assert math.isclose(measure(network)["signal"], float(features.double().square().sum()), rel_tol=1e-6)


def test_without_calibration_clips_there_is_nothing_to_quantize_by(model: VideoRegressor) -> None:
    variant = Variant(name="ptq", method="ptq", engine="inductor")
    with pytest.raises(QrayError, match="observes calibration clips, and there are none"):
        layered(BuildRequest(variant, model, TINY_CLIP))
