"""What OpenVINO executes: read from the compiled model's runtime graph."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any


def _text(info: Any) -> str:
    return str(info.value if hasattr(info, "value") else info)


def executed_in(compiled: Any, precisions: set[str], names: Collection[str]) -> tuple[set[str], int]:
    """(layers of `names`, number of residual adds) that run in one of `precisions`, fused nodes by their original
    names."""
    layers: set[str] = set()
    adds = 0
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind, precision = _text(info["layerType"]), _text(info["runtimePrecision"]).lower()
        if precision not in precisions:
            continue
        original = _text(info["originalLayersNames"]).split(",")
        if kind in ("Convolution", "FullyConnected"):
            layers |= set(original).intersection(names)
        if kind in ("Convolution", "Eltwise", "Add"):
            adds += sum(name.startswith("residual.") for name in original)
    return layers, adds


def quantized_after(compiled: Any, prefix: str) -> list[str] | None:
    """Nodes that run in INT8, or quantize, and depend on one whose original name begins with `prefix`; None if there is
    no such node."""
    reached: set[str] = set()
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        names = _text(info["originalLayersNames"]).split(",")
        sources = {value.get_node().get_friendly_name() for value in node.input_values()}
        if reached & sources or any(name.startswith(prefix) for name in names):
            reached.add(node.get_friendly_name())
            if _text(info["layerType"]) == "FakeQuantize" or _text(info["runtimePrecision"]).lower() in ("u8", "i8"):
                found.append(node.get_friendly_name())
    return found if reached else None


def fused_before_adds(compiled: Any) -> set[str]:
    """Original names of what is computed inside one node of INT8 output with a residual add that comes after it."""
    fused: set[str] = set()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        names = _text(info["originalLayersNames"]).split(",")
        adds = [at for at, name in enumerate(names) if name.startswith("residual.")]
        if adds and _text(info["outputPrecisions"]).lower() in ("u8", "i8"):
            fused.update(names[: adds[0]])
    return fused


def constant_bytes(xml: Path) -> int:
    """Bytes of a saved model's constants, which its .bin file holds."""
    return xml.with_suffix(".bin").stat().st_size
