"""An ONNX graph as a module of PyTorch's, so that it can be exported like any other."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qray.importing.onnx_operators import OPERATORS, Unsupported


class OnnxNetwork(nn.Module):
    """An ONNX graph of one input and one output; its initializers are its weights, under their own names.

    Raises:
        Unsupported: it has an operator that is not in `OPERATORS`.
    """

    def __init__(self, model: Any, batch: int | None) -> None:
        """batch: number of clips that it was exported for, None for any."""
        import onnx
        from onnx import numpy_helper

        super().__init__()
        unknown = sorted({node.op_type for node in model.graph.node} - OPERATORS.keys() - {"Constant"})
        if unknown:
            raise Unsupported(f"operators {', '.join(unknown)}")
        self.places: dict[str, tuple[nn.Module, str]] = {}
        self.sizes: dict[str, np.ndarray] = {}
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.nodes = []
        for node in model.graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            attributes = {name: _plain(value) for name, value in attributes.items()}
            if node.op_type == "Constant":
                constants[node.output[0]] = np.asarray(next(iter(attributes.values())))
                continue
            facts = {"op": node.op_type, "outputs": len(node.output), "batch": batch}
            self.nodes.append((node.op_type, list(node.input), list(node.output), attributes | facts))
        for name, value in constants.items():
            self._hold(name, value)
        weights = set(constants)
        (self.input,) = (value.name for value in model.graph.input if value.name not in weights)
        self.output = model.graph.output[0].name

    def _hold(self, name: str, value: np.ndarray) -> None:
        """Whole numbers are sizes and places; others are weights, by modules as the dots of their names have them."""
        if value.dtype.kind in "iub":
            self.sizes[name] = value.astype(object)
            return
        *owners, leaf = re.sub(r"[^\w.]", "_", name).strip("._").split(".") or ["constant"]
        module: nn.Module = self
        for owner in owners:
            if owner not in module._modules:
                module.add_module(owner or "_", nn.Module())
            module = module.get_submodule(owner or "_")
        while hasattr(module, leaf):
            leaf += "_"
        module.register_buffer(leaf, torch.from_numpy(value.astype(np.float32)))
        self.places[name] = module, leaf

    def forward(self, x: Tensor) -> Tensor:
        """What the graph's input stands for -> its output."""
        values: dict[str, Any] = {self.input: x, "": None, **self.sizes}
        values |= {name: getattr(module, leaf) for name, (module, leaf) in self.places.items()}
        for op, inputs, outputs, attributes in self.nodes:
            found = OPERATORS[op](attributes, *(values[name] for name in inputs))
            several = len(outputs) > 1 and isinstance(found, tuple | list)
            values.update(zip(outputs, found if several else [found], strict=False))
        result: Tensor = values[self.output]
        return result


def _plain(value: Any) -> Any:
    from onnx import TensorProto, numpy_helper

    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return value.decode() if isinstance(value, bytes) else value
