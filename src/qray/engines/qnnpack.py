"""QNNPACK through FX graph mode quantization and TorchScript: how PyTorch itself ran INT8 on phones, and how the study
that qray grew from did.

Everything of this file is deprecated: torch.ao.quantization in favour of torchao, TorchScript in favour of
torch.export. Neither has QNNPACK's kernels, so that what is out on devices with them can be made and compared by
nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx
from torch.ao.quantization import PerChannelMinMaxObserver, QConfig, QConfigMapping, UniformQuantizationObserverBase
from torch.ao.quantization.quantize_fx import convert_fx, convert_to_reference_fx, prepare_fx

from qray.engines.artifact import BuildRequest, Built, Predict
from qray.engines.layers import export, read_layers, resolve_keep_fp32
from qray.engines.parity import Outside, Simulated
from qray.engines.proof import prove
from qray.engines.ranges import observers
from qray.engines.tail import BACKBONE
from qray.engines.torch_program import runner
from qray.errors import QrayError

if TYPE_CHECKING:
    # An artifact loads without the code that trained it.
    from qray.model.regressor import VideoRegressor

MODEL_FILE = "model.pt"
ENGINE = "qnnpack"
#: Smallest scale, as in PyTorch's own configuration for QNNPACK.
SCALE_EPSILON = 2**-12
#: What a layer's packed weights are called, on the way to them.
PACKED = "_packed_params"


class _Range(UniformQuantizationObserverBase):
    """An observer of `ranges`, as FX takes them."""

    def __init__(self, kind: str, margin: float) -> None:
        super().__init__(dtype=torch.quint8, qscheme=torch.per_tensor_affine, eps=SCALE_EPSILON)
        self.watch = observers(kind, margin, ["x"])["x"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.watch(x.detach())
        return x

    def calculate_qparams(self, **kwargs: Any) -> Any:
        low, high = self.watch.bounds()
        return self._calculate_qparams(torch.tensor(low), torch.tensor(high))


@contextlib.contextmanager
def _by_qnnpack() -> Iterator[None]:
    """Kernels are chosen by a setting of the process, when weights are packed and when some operators run."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = ENGINE
    try:
        with warnings.catch_warnings():
            # That it is all deprecated.
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.quantized.engine = before


def build(request: BuildRequest, folder: Path) -> Built:
    """Write `model.pt`, a TorchScript program.

    Raises:
        QrayError: a network that FX cannot trace or QNNPACK cannot run; or a convolution or a residual add that would
            run in FP32.
    """
    layers = read_layers(export(request.model, request.example()))
    if any(isinstance(module, torch.nn.Conv3d) for module in request.model.modules()):
        raise QrayError("QNNPACK has no convolution over time")
    kept = resolve_keep_fp32(layers, request.variant.keep_fp32)
    with _by_qnnpack(), torch.no_grad():
        try:
            prepared = _observed(request, kept)
            reference = _with_backbone(request.model, convert_to_reference_fx(copy.deepcopy(prepared)))
            deployed = _with_backbone(request.model, convert_fx(prepared)).requires_grad_(False)
            scripted = torch.jit.trace(deployed, (request.example(),))  # type: ignore[no-untyped-call]
        except (RuntimeError, TypeError, ValueError, AttributeError, fx.proxy.TraceError) as error:
            raise QrayError(f"FX quantizes no such network: {type(error).__name__}: {error}") from error
        torch.jit.save(scripted, str(folder / MODEL_FILE))
        graph = _loaded(folder / MODEL_FILE).inlined_graph
    return prove(
        request, MODEL_FILE, _parameter_bytes(deployed), layers, executed_int8(graph), quantized_in_tail(graph),
        _simulate(reference), load(folder, Built(MODEL_FILE, 0, 0.0, 0), 1, "cpu"), onednn=False, saturates=False,
    )  # fmt: skip


def _observed(request: BuildRequest, kept: Sequence[str]) -> fx.GraphModule:
    """The backbone with observers, which have seen the calibration clips."""
    variant, model = request.variant, request.model
    kind = "mse" if variant.observer == "histogram" else variant.observer
    weight = PerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, eps=SCALE_EPSILON
    )
    activation = _Range.with_args(kind=kind, margin=variant.range_margin)
    config = QConfig(activation=activation, weight=weight)  # type: ignore[no-untyped-call]
    mapping = QConfigMapping().set_global(config)
    for name in kept:
        mapping.set_module_name(name.removeprefix(f"{BACKBONE}."), None)
    prepared = prepare_fx(copy.deepcopy(model.backbone), mapping, (model.normalize(request.example()),))
    for clips in request.calibration:
        prepared(model.normalize(clips))
    return prepared


def _with_backbone(model: VideoRegressor, backbone: fx.GraphModule) -> VideoRegressor:
    model = copy.deepcopy(model)
    model.backbone = backbone
    return model.eval()


def _simulate(model: VideoRegressor) -> Simulated:
    """The network with pairs of quantizing and dequantizing around floats, watched as it computes."""
    outside = Outside()

    class Watching(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n.target is torch.quantize_per_tensor:
                values, scale, zero, _ = self.fetch_args_kwargs_from_env(n)[0]
                step, offset = float(scale), int(zero)
                outside.see(str(n.args[0]), values.numpy(), -offset * step, (255 - offset) * step, step)
            return super().run_node(n)

    backbone = model.backbone
    assert isinstance(backbone, fx.GraphModule)
    # The regressor calls it as a module, by what it finds there.
    backbone.forward = Watching(backbone).run
    return Simulated(runner(model, 1), outside)


def executed_int8(graph: Any) -> tuple[set[str], int]:
    """Layers that a TorchScript graph runs as INT8 convolutions or products, by the paths of their packed weights; and
    how many INT8 additions it runs."""
    found: set[str] = set()
    adds = 0
    for node in graph.nodes():
        if re.match(r"quantized::(conv|linear)", node.kind()):
            found.add(_path_of(list(node.inputs())[1]).removesuffix(f".{PACKED}"))
        adds += bool(re.match(r"quantized::add", node.kind()))
    return found, adds


def _path_of(value: Any) -> str:
    """Where an attribute lies: its name after those of the modules that hold it. What another replaced has its name
    after an underscore, which is none of the layer's."""
    names: list[str] = []
    while (node := value.node()).kind() == "prim::GetAttr":
        names.append(node.s("name"))
        (value,) = node.inputs()
    return ".".join(reversed(names))


def quantized_in_tail(graph: Any) -> list[str] | None:
    """Quantized operators after the last value that was taken back to floats; None where none was."""
    kinds = [str(node.kind()) for node in graph.nodes()]
    if "aten::dequantize" not in kinds:
        return None
    last = len(kinds) - 1 - kinds[::-1].index("aten::dequantize")
    return [kind for kind in kinds[last + 1 :] if "quantize" in kind]


def _parameter_bytes(model: VideoRegressor) -> int:
    """Codes, their scales and zero points, and biases; and what stays in floats."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    for module in model.modules():
        if callable(packed := getattr(module, "_weight_bias", None)):
            weight, bias = packed()
            total += weight.numel() + (0 if bias is None else bias.numel() * bias.element_size())
            total += weight.size(0) * (4 + 4)
    return total


def _loaded(path: Path) -> Any:
    return torch.jit.load(str(path))  # type: ignore[no-untyped-call]


def load(folder: Path, built: Built, threads: int, device: str) -> Predict:
    """Run the program."""
    with _by_qnnpack():
        program = _loaded(folder / built.model_file)
    predict = runner(program, threads)

    def by_qnnpack(clips: np.ndarray) -> np.ndarray:
        with _by_qnnpack():
            return predict(clips)

    return by_qnnpack
