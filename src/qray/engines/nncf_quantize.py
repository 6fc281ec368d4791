"""Static INT8 of OpenVINO's models by NNCF, and ranges of activations that it has no estimator for."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import torch

from qray.engines.artifact import BuildRequest
from qray.engines.openvino import compile_for_cpu
from qray.engines.parity import one_by_one
from qray.engines.ranges import observers
from qray.engines.tail import PREFIX
from qray.study import Variant


def quantize(request: BuildRequest, model: Any, kept: tuple[str, ...]) -> Any:
    """An OpenVINO model quantized for `method: ptq`. kept: names of nodes that stay in FP32; the tail does, too."""
    # NNCF compiles a torch extension on import, which can take longer than its own limit of 60 s.
    os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")
    import nncf
    from nncf.quantization.advanced_parameters import OverflowFix

    logging.getLogger("nncf").setLevel(logging.ERROR)
    fix = OverflowFix.ENABLE if request.reduce_range else OverflowFix.DISABLE
    variant = request.variant
    tail = [name for node in model.get_ordered_ops() if (name := node.get_friendly_name()).startswith(PREFIX)]
    quantized = nncf.quantize(
        model.clone(),
        nncf.Dataset(request.calibration, lambda batch: batch.numpy()),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(request.calibration),
        ignored_scope=nncf.IgnoredScope(names=[*kept, *tail], validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=fix,
            activations_range_estimator_params=range_estimator(variant.observer),
            # On a ResNet-18, with per-channel weights, it moved predictions further from FP32 (0.36 against 0.21 EF
            # points).
            disable_bias_correction=not variant.bias_correction,
        ),
    )
    set_ranges(quantized, variant, request.calibration)
    return quantized


def set_ranges(quantized: Any, variant: Variant, calibration: Iterable[Any]) -> None:
    """Give activations the ranges that NNCF has no estimator for, and then all of them their margin. What has a range
    for each channel, the input of a depthwise convolution, keeps its extremes."""
    from openvino import opset13 as ops

    quantizers = [
        node for node in quantized.get_ordered_ops()
        if node.get_type_name() == "FakeQuantize" and node.input_value(0).get_node().get_type_name() != "Constant"
    ]  # fmt: skip
    ranges = {}
    if variant.observer not in ("minmax", "histogram"):
        whole = [node.get_friendly_name() for node in quantizers if node.input_value(1).get_shape() in ([], [1])]
        ranges = _observed(quantized, whole, variant.observer, calibration)
    for node in quantizers:
        found, levels = ranges.get(node.get_friendly_name()), int(node.get_attributes()["levels"])
        bounds = [node.input_value(at).get_node().get_data() for at in range(1, 5)]
        if found is not None:
            low, high = _with_a_code_for_zero(found, levels)
            bounds = [np.full_like(bounds[0], value) for value in (low, high, low, high)]
        for at, values in enumerate(bounds, 1):
            widened = ops.constant(values * np.float32(variant.range_margin))
            node.input(at).replace_source_output(widened.output(0))


def _with_a_code_for_zero(bounds: tuple[float, float], levels: int) -> tuple[float, float]:
    """A range moved by less than a step, so that one of its codes is 0."""
    low, high = bounds
    step = max(high - low, 1e-6) / (levels - 1)
    first = round(low / step)
    return first * step, (first + levels - 1) * step


def _observed(quantized: Any, names: Collection[str], kind: str, calibration: Iterable[Any]) -> dict[str, Any]:
    """(low, high) of what these quantizers read where no activation is quantized, by their names."""
    from openvino import opset13 as ops

    model, watched = quantized.clone(), observers(kind, 1.0, list(names))
    read = {}
    for node in [n for n in model.get_ordered_ops() if n.get_type_name() == "FakeQuantize"]:
        read[node.get_friendly_name()] = node.input_value(0)
        node.output(0).replace(node.input_value(0))
    model.add_results([ops.result(read[name]) for name in watched])
    compiled = compile_for_cpu(model, "fp32", 1)
    for batch in calibration:
        for clip in one_by_one(batch.numpy()):
            for observer, values in zip(watched.values(), compiled(clip).to_tuple()[1:], strict=True):
                observer(torch.from_numpy(values))
    return {name: observer.bounds() for name, observer in watched.items()}


def range_estimator(observer: str) -> Any:
    """Extremes of all calibration clips, or their extreme quantiles. NNCF's default, the mean of each clip's extremes,
    cuts off the strong activations that max-min pooling lives on (MAE 2.9 -> 3.5)."""
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    kind = StatisticsType.QUANTILE if observer == "histogram" else None
    low = StatisticsCollectorParameters(kind or StatisticsType.MIN, AggregatorType.MIN, quantile_outlier_prob=1e-5)
    high = StatisticsCollectorParameters(kind or StatisticsType.MAX, AggregatorType.MAX, quantile_outlier_prob=1e-5)
    return RangeEstimatorParameters(low, high)
