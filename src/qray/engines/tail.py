"""The tail, which stays in float on every engine: what depends on the backbone's output, from pooling over time on.

The output of a regressor must never be clipped to what the calibration clips happened to contain. The rule knows
nothing of a network's names but where its backbone is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qray.errors import QrayError

if TYPE_CHECKING:
    # An artifact loads without PyTorch where its engine needs none.
    from torch import fx

BACKBONE = "backbone"
#: What tail nodes and the values that they make are called in ONNX and OpenVINO graphs, so that the graph that an
#: engine executes can be asked about them.
PREFIX = "tail/"


def tail_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Nodes of an exported graph that lie outside the backbone and depend on it, in order."""
    depends: dict[fx.Node, bool] = {}
    for node in graph.nodes:
        if not in_backbone(node):
            depends[node] = any(depends.get(source) or in_backbone(source) for source in node.all_input_nodes)
    return [node for node, does in depends.items() if does and node.op == "call_function"]


def in_backbone(node: fx.Node) -> bool:
    """Whether a node of an exported graph is computed by the backbone."""
    paths = [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return any(BACKBONE in path.split(".") for path in paths)


def check_tail(quantized: Sequence[str] | None) -> None:
    """Judge the nodes of an executed graph that are quantized and belong to the tail; None: the graph shows no tail.

    Raises:
        QrayError: there are such nodes, or nothing shows that there are none.
    """
    if quantized is None:
        raise QrayError("the graph that the engine executes shows no tail, so that nothing proves that it is in float")
    if quantized:
        raise QrayError(f"quantized between pooling over time and the output: {', '.join(quantized)}")
