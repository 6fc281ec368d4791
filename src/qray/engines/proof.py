"""What an INT8 artifact must show before it is one, whatever the engine."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qray.engines.artifact import BuildRequest, Built, Predict
from qray.engines.layers import Layers, check_coverage, races, resolve_keep_fp32, total_macs
from qray.engines.parity import Simulated, parity_notes
from qray.engines.tail import check_tail
from qray.engines.torch_program import runner
from qray.measure.isa import INT8_DOT_PRODUCT


def prove(
    request: BuildRequest, file: str, weights_bytes: int, layers: Layers, executed: tuple[set[str], int],
    tail: Sequence[str] | None, simulated: Simulated, deployed: Predict, *, onednn: bool, needs: tuple[str, ...] = (),
    left: Collection[str] = (), saturates: bool = True,
) -> Built:  # fmt: skip
    """Describe an artifact, all of whose layers but the tail's and those to be kept run in INT8.

    executed: layers, and number of residual adds, that the engine runs in INT8. tail: as `check_tail` takes it. onednn:
    whether it is that library's convolutions that run. needs: of CPU flags, whatever the weights' range. left: as
    `check_coverage` takes it. saturates: whether kernels add products in 16 bits where a CPU has no dot product.

    Raises:
        QrayError: convolutions or residual adds run in FP32, something of the tail is quantized, or a prediction is not
            finite.
    """
    int8, adds = executed
    kept = request.qat_settings.get("keep_fp32", ()) if request.qat_settings else request.variant.keep_fp32
    share = check_coverage(layers, int8, adds, resolve_keep_fp32(layers, tuple(kept), unweighted=True), left)
    check_tail(tail)
    notes = parity_notes(runner(request.model, 1), simulated, deployed, request.validation)
    notes |= {"reduce_range": request.reduce_range, "int8_layers": len(int8), "int8_residual_adds": adds}
    if left:
        notes["fp32_layers"] = sorted(left)
    if onednn and races(layers):
        notes["one_thread"] = True
    if saturates and request.variant.weight_bits == 8 and not request.reduce_range:
        needs = (*needs, INT8_DOT_PRODUCT)
    return Built(file, weights_bytes, share, total_macs(layers), needs, notes)
