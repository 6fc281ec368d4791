"""VideoRegressor -> ONNX, with what is constant folded, so that each convolution keeps its layer's name. OpenVINO too
converts what is folded here."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from qray.engines.artifact import BuildRequest
from qray.engines.layers import CONVOLUTIONS, Layers, export, operator_of, read_layers
from qray.engines.tail import PREFIX
from qray.model.regressor import VideoRegressor

aten = torch.ops.aten


class WithFeatures(VideoRegressor):
    """Returns the backbone's output too, by which the tail is found in the graph of another engine."""

    forward = VideoRegressor.with_features  # type: ignore[assignment]


def folded(request: BuildRequest) -> tuple[torch.export.ExportedProgram, Layers]:
    """A program that gives predictions and features, in which every convolution has taken in the batch-norm that
    follows it, and the first one the scale of its channels; the same function. And the network's layers."""
    model = copy.copy(request.model)
    model.__class__ = WithFeatures
    program = export(model, request.example())
    layers = read_layers(program)
    fold(program)
    return program, layers


class _Constants:
    """Parameters and buffers of a program, by the nodes that stand for them."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.state, specs = program.state_dict, program.graph_signature.input_specs
        self.specs = {spec.arg.name: spec for spec in specs if spec.target in self.state}

    def hold(self, *nodes: Any) -> bool:
        """Whether all these nodes are constants that nothing else reads."""
        return all(isinstance(n, fx.Node) and n.name in self.specs and len(n.users) == 1 for n in nodes)

    def __getitem__(self, node: Any) -> Any:
        return self.state[self.specs[node.name].target]

    def __setitem__(self, node: Any, value: torch.Tensor) -> None:
        self.state[self.specs[node.name].target] = value


def fold(program: torch.export.ExportedProgram) -> None:
    """Fold in place. The tensors of the model that was exported stay what they are."""
    graph, constants = program.graph, _Constants(program)
    with torch.no_grad():
        for convolution, norm in normalised(graph):
            _fold_batch_norm(convolution, norm, constants)
        for node in graph.find_nodes(op="call_function", target=aten.add.Tensor):
            _fold_channel_scale(node, constants)
    for node in graph.find_nodes(op="placeholder"):
        if node.name in constants.specs and not node.users:
            program.graph_signature.input_specs.remove(constants.specs[node.name])
            del program.state_dict[constants.specs[node.name].target]
            graph.erase_node(node)
    program.graph_module.recompile()
    program.validate()  # type: ignore[no-untyped-call]


def normalised(graph: fx.Graph) -> list[tuple[Any, Any]]:
    """Convolutions whose output a batch-norm in evaluation reads and nothing else does, each with its batch-norm."""
    norms: Any = graph.find_nodes(op="call_function", target=aten.batch_norm.default)
    pairs = [(norm.args[0], norm) for norm in norms if not norm.args[5]]
    return [(made, norm) for made, norm in pairs if operator_of(made) in CONVOLUTIONS and len(made.users) == 1]


def _fold_batch_norm(convolution: Any, norm: Any, constants: _Constants) -> None:
    """norm(conv(x)) = conv'(x); a convolution without a bias takes over the batch-norm's."""
    x, weight, *rest = convolution.args
    bias = rest[0] if rest else None
    scale, shift, mean, variance, _, _, epsilon = norm.args[1:8]
    if not constants.hold(weight, bias or shift, scale, shift, mean, variance):
        return
    new_weight, new_bias = fuse_conv_bn_weights(
        constants[weight], bias and constants[bias], constants[mean], constants[variance], epsilon,
        constants[scale], constants[shift],
    )  # fmt: skip
    if bias is None:
        bias = shift
        del constants.state[constants.specs[bias.name].target]
        constants.specs[bias.name].target = f"{constants.specs[weight.name].target.removesuffix('weight')}bias"
    constants[weight], constants[bias] = new_weight, new_bias
    convolution.args = (x, weight, bias, *rest[1:])
    norm.replace_all_uses_with(convolution)
    convolution.graph.erase_node(norm)


def _fold_channel_scale(add: Any, constants: _Constants) -> None:
    """conv(x s + t) = conv'(x + t / s) with weights w s: one pass over the pixels less, the padding still zero."""
    product, shift = add.args
    if operator_of(product) is not aten.mul or any(operator_of(reader) not in CONVOLUTIONS for reader in add.users):
        return
    (x, scale), weights = product.args, [reader.args[1] for reader in add.users]
    if len(product.users) > 1 or not constants.hold(scale, shift, *weights):
        return
    factor = constants[scale]
    # One factor for each of the channels, all of which every convolution reads.
    if any(factor.shape != (1, w.shape[1], *[1] * (w.dim() - 2)) for w in map(constants.__getitem__, weights)):
        return
    for weight in weights:
        constants[weight] = nn.Parameter(constants[weight] * factor)
    constants[shift] = constants[shift] / factor
    product.replace_all_uses_with(x)
    add.graph.erase_node(product)


def export_onnx(request: BuildRequest, path: Path) -> Layers:
    """Write the FP32 model, `folded`: input `clips` uint8 (batch, T, H, W, 3), output `prediction` float32 (batch,).

    Nodes of the tail and the values between them are called `tail/...`. Returns the network's layers.
    """
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program, layers = folded(request)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program, (), str(path), dynamo=True, verbose=False, input_names=["clips"],
            output_names=["prediction", "features"], external_data=False, optimize=True,
        )  # fmt: skip
    model = onnx.load(str(path))
    _name_tail(model.graph)
    onnx.save(model, str(path))
    return layers


def _name_tail(graph: Any) -> None:
    """Drop the output `features`, and call what comes after it by the names of the tail. Nodes come in order."""
    outputs = list(graph.output)
    del graph.output[:]
    graph.output.extend(value for value in outputs if value.name != "features")
    renamed = {"features": "features"}
    for node in graph.node:
        if any(name in renamed for name in node.input):
            node.name = f"{PREFIX}{len(renamed)}"
            for at, name in enumerate(node.output):
                renamed[name] = name if name == "prediction" else f"{node.name}.{at}"
                node.output[at] = renamed[name]
        for at, name in enumerate(node.input):
            node.input[at] = renamed.get(name, name)
    kept = [value for value in graph.value_info if value.name not in renamed]
    del graph.value_info[:]
    graph.value_info.extend(kept)
