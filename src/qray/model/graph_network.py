"""Networks that are exported graphs: made to look like any other, and parted where their features are."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from qray.errors import QrayError

aten = torch.ops.aten
#: Operators that do something else in training, and which of their arguments says so.
TRAINING_FLAG = {aten.batch_norm.default: 5, aten.dropout.default: 2}
#: What the operators of a flat graph were before it was exported.
SOURCES: dict[Any, Any] = {
    aten.conv1d: nn.Conv1d, aten.conv2d: nn.Conv2d, aten.conv3d: nn.Conv3d, aten.linear: nn.Linear,
    aten.batch_norm: nn.BatchNorm2d, aten.relu: nn.ReLU, aten.relu_: nn.ReLU, aten.hardtanh: nn.Hardtanh,
    aten.hardtanh_: nn.Hardtanh, aten.relu6: nn.ReLU6, aten.hardswish: nn.Hardswish, aten.hardswish_: nn.Hardswish,
    aten.silu: nn.SiLU, aten.silu_: nn.SiLU, aten.add: torch.add, aten.add_: torch.add,
}  # fmt: skip


def plain_graph(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The module of a program, without assertions about its input, and with convolutions and batch-norms as `nn` calls
    them where it was decomposed into core operators."""
    module: fx.GraphModule = program.module(check_guards=False)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and "assert" in str(node.target) and not node.users:
            module.graph.erase_node(node)
        elif node.target == aten.convolution.default and not node.args[6]:
            rank = node.meta["val"].dim() - 2
            node.target = getattr(aten, f"conv{rank}d").default
            node.args = (*node.args[:6], node.args[8])
        elif str(node.target).startswith("aten._native_batch_norm_legit_no_training"):
            _plain_batch_norm(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _plain_batch_norm(node: fx.Node) -> None:
    x, weight, bias, mean, variance, momentum, epsilon = node.args
    with node.graph.inserting_before(node):
        arguments = (x, weight, bias, mean, variance, False, momentum, epsilon, True)
        norm = node.graph.call_function(aten.batch_norm.default, arguments)
    for reader in list(node.users):
        if reader.args[1] == 0:
            norm.meta = dict(reader.meta)
            reader.replace_all_uses_with(norm)
        node.graph.erase_node(reader)
    node.graph.erase_node(node)


class Part(nn.Module):
    """Part of a graph as a module: `train` and `eval` reach its batch-norms and dropouts, as they would have been set
    before it was exported."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whatever the graph takes and gives."""
        return self.graph(x)

    def train(self, mode: bool = True) -> Part:
        """As of any module."""
        self.training = mode
        switch_training(self.graph, mode)
        return self


def switch_training(module: fx.GraphModule, training: bool) -> None:
    """Set the flag of every batch-norm and dropout of a graph.

    torchao's `move_exported_model_to_train` and `_to_eval` export six patterns each time, which takes them a second,
    and put others in the places of what they find.
    """
    for node in module.graph.nodes:
        if node.target in TRAINING_FLAG:
            node.update_arg(TRAINING_FLAG[node.target], training)
    module.recompile()


def with_sources(module: fx.GraphModule) -> fx.GraphModule:
    """The module of an exported network, in which calls name the functions by which torchao's quantizer looks for what
    it may quantize, each by itself.

    Dynamo would name them, in five times the time, and not in a graph that was imported.
    """
    for node in module.graph.nodes:
        source = (
            SOURCES.get(getattr(node.target, "overloadpacket", node.target)) if node.op == "call_function" else None
        )
        if source is not None:
            node.meta["source_fn_stack"] = [(node.name, source)]
    return module


def parted(module: fx.GraphModule, name: str) -> tuple[Part, Part]:
    """The backbone and the head of a network: up to its features and from there on.

    The features are the first value of one number per channel, (N, C) or (N, C, 1, ...), through which everything must
    pass that reaches the output.

    Raises:
        QrayError: it has not one input and one output, or no such value.
    """
    clips, output = _ends(module, name)
    reach = _ancestors(output)
    candidates = (node for node in module.graph.nodes if node in reach and _is_vector(node))
    features = next((node for node in candidates if not _passes_by(node, clips, output)), None)
    if features is None:
        raise QrayError(
            f"{name}: nowhere does all that its output depends on stand as one number per channel; qray takes networks "
            "that pool over positions before their head"
        )
    below, above = _ancestors(features), _ancestors(output, features)
    backbone, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in (node for node in module.graph.nodes if node in below):
        copied[node] = backbone.node_copy(node, copied.__getitem__)
    backbone.output(copied[features])
    head = fx.Graph()
    entry = head.placeholder("features")
    entry.meta, copied = dict(features.meta), {features: entry}
    for node in (node for node in module.graph.nodes if node in above and node not in (features, clips)):
        if node.target == aten.sym_size.int and node.args == (clips, 0):
            # The head does not see the clips, of which it only asks how many there are.
            rows = head.call_function(aten.sym_size.int, (entry, 0))
            copied[node] = head.call_function(operator.floordiv, (rows, _rows_per_clip(features, clips)))
        else:
            copied[node] = head.node_copy(node, copied.__getitem__)
    head.output(copied[output])
    return Part(fx.GraphModule(module, backbone)), Part(fx.GraphModule(module, head))


def _ends(module: fx.GraphModule, name: str) -> tuple[fx.Node, fx.Node]:
    """The input, and what is returned."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    returned = tree_leaves(module.graph.output_node().args)
    if len(inputs) != 1 or len(returned) != 1:
        raise QrayError(
            f"{name}: has {len(inputs)} inputs and {len(returned)} outputs; qray takes a network of one input, the "
            "frames of a clip, and one output, a number for each"
        )
    return inputs[0], returned[0]


def _ancestors(node: fx.Node, end: fx.Node | None = None) -> set[fx.Node]:
    """The node and all that it depends on, but for what `end` depends on."""
    found, left = {node}, [node]
    while left:
        if (here := left.pop()) is not end:
            new = set(here.all_input_nodes) - found
            found |= new
            left += new
    return found


def _is_vector(node: fx.Node) -> bool:
    value = node.meta.get("val")
    shape = value.shape if isinstance(value, torch.Tensor) else ()
    return len(shape) >= 2 and isinstance(shape[0], torch.SymInt) and all(size == 1 for size in shape[2:])


def _passes_by(node: fx.Node, clips: fx.Node, output: fx.Node) -> bool:
    """Whether numbers of the clips reach the output by another way than this node; sizes are no such numbers."""
    seen, left = {clips, node}, [clips]
    while left:
        for reader in left.pop().users:
            if reader is output:
                return True
            if reader not in seen and isinstance(reader.meta.get("val"), torch.Tensor | list | tuple):
                seen.add(reader)
                left.append(reader)
    return False


def _rows_per_clip(features: fx.Node, clips: fx.Node) -> int:
    """Rows of the features for each of the input's, from the symbols of their sizes."""
    rows, batch = features.meta["val"].shape[0], clips.meta["val"].shape[0]
    return int(rows.node.expr / batch.node.expr)
