"""Static INT8 with torchao's pt2e flow and the X86 inductor quantizer: PTQ, and the QAT module that trials train."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import nn
from torchao.quantization.pt2e import (
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
    disable_observer,
    enable_observer,
)
from torchao.quantization.pt2e.fake_quantize import FakeQuantize
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    QUANT_ANNOTATION_KEY,
    QuantizationConfig,
    X86InductorQuantizer,
    _X86InductorQuantizationAnnotation,
)
from torchao.quantization.pt2e.utils import _fuse_conv_bn_

from qray.engines import conv3d
from qray.engines.adaround import round_adaptively
from qray.engines.artifact import BuildRequest, Predict
from qray.engines.fake_quantize import FakeQuantizeActivation
from qray.engines.layers import LAYER, LAYERS, Layers, export, operator_of, read_layers, resolve_keep_fp32
from qray.engines.parity import Outside, Simulated
from qray.engines.qat_patterns import check_folded, few_patterns
from qray.engines.ranges import OBSERVERS
from qray.engines.tail import tail_nodes
from qray.engines.torch_program import runner
from qray.errors import QrayError
from qray.model.graph_network import switch_training, with_sources
from qray.model.regressor import VideoRegressor
from qray.study import Variant
from qray.study_verdict import Section

#: Smallest scale, as in torch's own x86 configuration: below it a dead channel would divide by nothing.
SCALE_EPSILON = 2**-12
#: What an engine quantizes by, of a request and the layers of its network.
QuantizerOf = Callable[[BuildRequest, Layers], Quantizer]


class QatSettings(Section):
    """What distinguishes one QAT module from another."""

    weight_bits: Literal[8, 4] = 8
    observer: Literal["moving_average", "minmax"] = "moving_average"
    keep_fp32: tuple[str, ...] = ()
    reduce_range: bool = False


class TailInFloat(X86InductorQuantizer):
    """Every convolution and residual add, as the x86 quantizer has it, but for some nodes, and nothing of the tail."""

    def __init__(self, kept: Collection[str] = ()) -> None:
        super().__init__()
        self.kept = kept

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Mark what stays as settled before the quantizer looks, which is how it reads a configuration of None."""
        for node in [*tail_nodes(model.graph), *(node for node in model.graph.nodes if node.name in self.kept)]:
            node.meta[QUANT_ANNOTATION_KEY] = _X86InductorQuantizationAnnotation(_annotated=True)
        conv3d.annotate(model.graph, self.global_config)
        return super().annotate(model)


def _config(weight_bits: int, reduce_range: bool, activation: Any, weight: Any, qat: bool) -> QuantizationConfig:
    """uint8 per-tensor activations, signed per-channel weights of the given width stored as int8 codes.

    A reduced range halves the weights': on the trained network of quickstart (150 VAL clips) predictions are 0.65 from
    FP32's (RMS) with -64..63 weights, 0.69 with 0..127 activations and 0.64 with neither; and on MobileNetV3 and
    EfficientNet nearly all of the damage is that of the activations.
    """
    most = 2 ** (weight_bits - 1) // (2 if reduce_range else 1)
    inputs = QuantizationSpec(
        dtype=torch.uint8, quant_min=0, quant_max=255, qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=activation,
    )  # fmt: skip
    weights = QuantizationSpec(
        dtype=torch.int8, quant_min=-most, quant_max=most - 1,
        qscheme=torch.per_channel_symmetric, ch_axis=0, observer_or_fake_quant_ctr=weight,
    )  # fmt: skip
    return QuantizationConfig(inputs, inputs, weights, None, qat)


def _quantizer(layers: Layers, config: QuantizationConfig, keep_fp32: tuple[str, ...]) -> X86InductorQuantizer:
    names = resolve_keep_fp32(layers, keep_fp32)
    return TailInFloat([n for layer in layers if layer.name in names for n in layer.nodes]).set_global(config)


def _quietly(function: Any, *arguments: Any, **named: Any) -> Any:
    # torchao warns of deprecations inside its own code at every step of this flow.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **named)


def observers_of(variant: Variant) -> tuple[Any, Any]:
    """What finds the ranges of activations and of weights where nothing is trained."""
    observer = OBSERVERS["mse" if variant.observer == "histogram" else variant.observer]
    activation = observer.with_args(eps=SCALE_EPSILON, margin=variant.range_margin)
    return activation, PerChannelMinMaxObserver.with_args(eps=SCALE_EPSILON)


def x86_quantizer(request: BuildRequest, layers: Layers) -> X86InductorQuantizer:
    """For AOTInductor, and whatever has its scales."""
    variant = request.variant
    config = _config(variant.weight_bits, request.reduce_range, *observers_of(variant), qat=False)
    return _quantizer(layers, config, variant.keep_fp32)


def observe_static(request: BuildRequest, quantizer: QuantizerOf = x86_quantizer) -> torch.fx.GraphModule:
    """The network with batch-norm folded and observers in place, which have seen the calibration clips; its FP32
    `Layers` are in its `meta[LAYERS]`, which conversion keeps."""
    program = export(request.model, request.example())
    layers = read_layers(program)
    prepared = _quietly(prepare_pt2e, _named(program, layers), quantizer(request, layers))
    prepared.meta[LAYERS] = layers
    with torch.no_grad():
        for clips in request.calibration:
            prepared(clips)
    return prepared


def _named(program: torch.export.ExportedProgram, layers: Layers) -> torch.fx.GraphModule:
    """A program's module, whose nodes say to what layer they belong: conversion gives them other names."""
    module, of = with_sources(program.module()), {node: layer.name for layer in layers for node in layer.nodes}
    for node in module.graph.nodes:
        if node.name in of:
            node.meta[LAYER] = of[node.name]
    return module


def quantize_static(request: BuildRequest, quantizer: QuantizerOf = x86_quantizer) -> torch.fx.GraphModule:
    """PTQ: observe the calibration clips, convert to quantize/dequantize pairs around FP32 operators; learn how to
    round if so asked."""
    observed = observe_static(request, quantizer)
    if request.variant.rounding == "nearest":
        return strip_unused(_quietly(convert_pt2e, observed))
    reference = unobserved(copy.deepcopy(observed))
    converted = strip_unused(_quietly(convert_pt2e, observed))
    round_adaptively(reference, converted, [clip[None] for b in request.calibration for clip in b], request.seed)
    return converted


def unobserved(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The network that was observed, in FP32, with nothing that looks on."""
    for name, child in list(module.named_children()):
        if isinstance(child, ObserverBase):
            setattr(module, name, nn.Identity())
    return module


def prepare_qat(model: VideoRegressor, example: torch.Tensor, settings: QatSettings) -> torch.fx.GraphModule:
    """A module with fake-quantization in place: uint8 clips in, target units out, gradients through all of it.

    `example`: uint8 (2, T, H, W, 3). The module is in training mode; switch with `set_training`. Its state_dict loads
    into any other module prepared with the same settings; `meta[LAYERS]` is as in `observe_static`. Where there are
    convolutions over time, batch-norm is folded before training.
    """
    # "minmax" keeps the extremes of all batches; "moving_average" follows them with a constant of 0.01.
    activation_observer = MovingAverageMinMaxObserver if settings.observer == "moving_average" else MinMaxObserver
    activation_arguments: dict[str, Any] = {"observer": activation_observer, "eps": SCALE_EPSILON}
    if settings.observer == "moving_average":
        activation_arguments["averaging_constant"] = 0.01
    config = _config(
        settings.weight_bits,
        settings.reduce_range,
        FakeQuantizeActivation.with_args(**activation_arguments),
        # Weights change at every step, so their range is that of the present weights (constant 1).
        FakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0, eps=SCALE_EPSILON
        ),
        qat=True,
    )
    # An exported module shares its parameters with what it was exported from, and this one is going to be trained.
    model = copy.deepcopy(model).train()
    program = export(model, example)
    folds = any(operator_of(node) is torch.ops.aten.conv3d for node in program.graph.nodes)
    if folds:
        program = export(model.eval(), example)
    layers = read_layers(program)
    quantizer = _quantizer(layers, config, settings.keep_fp32)
    exported = _named(program, layers)
    if folds:
        # Torchao has batch-norm learn on beside convolutions of one and two dimensions alone.
        _fuse_conv_bn_(exported)
    # Export wrote down that clips are on the CPU, and training may be on a GPU.
    for node in exported.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        exported.graph.erase_node(node)
    with few_patterns():
        prepared = _quietly(prepare_qat_pt2e, exported, quantizer)
    prepared.meta[LAYERS] = layers
    # One pass gives per-channel observers their final shapes, so that a state_dict fits from the start. The example is
    # no clip of the data set, so its activations must not count as seen.
    switch_training(prepared, False)
    with torch.no_grad():
        prepared(example)
    for observer in _activation_observers(prepared):
        observer.activation_post_process.reset_min_max_vals()
    set_training(prepared, True)
    return prepared


def set_training(module: torch.fx.GraphModule, training: bool) -> None:
    """Switch between training and evaluation: an exported module has no .train() of its own.

    In evaluation the activation ranges stay as they are, so that VAL clips calibrate nothing. Switching to training
    undoes both freezes.
    """
    switch_training(module, training)
    for observer in _activation_observers(module):
        (enable_observer if training else disable_observer)(observer)


def _activation_observers(module: nn.Module) -> list[FakeQuantizeActivation]:
    return [child for child in module.modules() if isinstance(child, FakeQuantizeActivation)]


def freeze_observers(module: torch.fx.GraphModule) -> None:
    """Keep the activation ranges seen so far; weights keep being observed, since they go on changing."""
    for observer in _activation_observers(module):
        disable_observer(observer)


def freeze_batch_norm(module: torch.fx.GraphModule) -> None:
    """Use and keep the running statistics from here on."""
    switch_training(module, False)


def quantize_qat(request: BuildRequest, settings: QatSettings) -> nn.Module:
    """The trained QAT state converted to quantize/dequantize pairs, as `quantize_static` gives."""
    if request.qat_state is None:
        raise QrayError(
            f"{request.variant.name}: method qat is built from the state of a trained QAT module; none given"
        )
    if settings.weight_bits != request.variant.weight_bits:
        raise QrayError(
            f"{request.variant.name}: weight_bits is {request.variant.weight_bits}, but the QAT module was trained "
            f"with {settings.weight_bits}"
        )
    if settings.reduce_range != request.reduce_range:
        trained, wanted = ("half" if reduced else "full" for reduced in (settings.reduce_range, request.reduce_range))
        raise QrayError(
            f"{request.variant.name}: the QAT module was trained with weights of {trained} range, and {request.isa} is "
            f"shipped with {wanted} range"
        )
    prepared = prepare_qat(request.model, request.example(), settings)
    prepared.load_state_dict(request.qat_state)
    set_training(prepared, False)
    # The last optimizer step came after the last look at the weights: look again, for the ranges of what is shipped.
    prepared(request.example())
    with few_patterns():
        converted = _quietly(convert_pt2e, prepared)
    return strip_unused(check_folded(converted))


def strip_unused(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Drop the FP32 weights that convert_pt2e leaves behind unused."""
    module.graph.eliminate_dead_code()
    module.recompile()
    used = {str(node.target) for node in module.graph.nodes if node.op in ("get_attr", "call_module")}
    names = [n for n, _ in [*module.named_parameters(), *module.named_buffers()]]
    for name in names:
        if not any(name == u or name.startswith(f"{u}.") for u in used):
            owner, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(owner), leaf)
    return module


def quantized(request: BuildRequest) -> nn.Module:
    """The simulated INT8 model of a ptq or qat request."""
    with torch.no_grad():
        if request.variant.method == "ptq":
            return quantize_static(request)
        settings = QatSettings.model_validate(request.qat_settings or {})
        return quantize_qat(request, settings)


class _Watching(torch.fx.Interpreter):
    """Computes a simulated model and counts what its activation quantizers cut off."""

    def __init__(self, module: torch.fx.GraphModule, outside: Outside) -> None:
        super().__init__(module)
        self.seen = outside

    def run_node(self, n: torch.fx.Node) -> Any:
        if n.target == torch.ops.quantized_decomposed.quantize_per_tensor.default:
            values, scale, zero, low, high, _ = self.fetch_args_kwargs_from_env(n)[0]
            name = str(n.args[0])
            self.seen.see(name, values.numpy(), (low - zero) * scale, (high - zero) * scale, scale)
        return super().run_node(n)


def simulate(module: torch.fx.GraphModule, threads: int) -> Simulated:
    """A converted module computed in float."""
    outside = Outside()
    predict: Predict = runner(_Watching(module, outside).run, threads)
    return Simulated(predict, outside)


def quantized_in_tail(module: torch.fx.GraphModule) -> list[str] | None:
    """Quantizing nodes of a converted module that depend on one of the tail; None where there is no tail."""
    # The operators that conversion adds have no scope of their own: they are judged by what they come after.
    reached = {node for node in tail_nodes(module.graph) if node.meta.get("nn_module_stack")}
    if not reached:
        return None
    for node in module.graph.nodes:
        if reached.intersection(node.all_input_nodes):
            reached.add(node)
    return [node.name for node in module.graph.nodes if node in reached and "quantize" in str(node.target)]
