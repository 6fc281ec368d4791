"""Artifacts of the tiny network, each built at most once per test session, and what they do in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.networks import TARGET_STD, request, smooth_clips, toy_batches, two_stages

from qray.engines.artifact import Artifact, BuildRequest
from qray.engines.registry import build_artifact
from qray.measure.host import has_native_bf16
from qray.measure.isa import native_isa, range_is_reduced
from qray.model.regressor import VideoRegressor
from qray.model.training import FitSettings, fit
from qray.study import INT8_METHODS, Training, Variant

#: A layer inside a block, so that what is left of the block's residual add shows too.
KEPT = "layer2.0.conv1"
#: Training from which the QAT artifact comes.
QAT_TRAINING = Training(epochs=1, batch_size=8, lr=1e-3, schedule="constant", augment=None, clip_grad_norm=None)
QAT_STEPS = 10


def _variant(name: str, method: str, engine: str, **settings: Any) -> Variant:
    return Variant.model_validate({"name": name, "method": method, "engine": engine, **settings})


VARIANTS = {
    variant.name: variant
    for variant in (
        _variant("fp32", "fp32", "eager"),
        _variant("fp32-inductor", "fp32", "inductor"),
        _variant("fp32-onnxruntime", "fp32", "onnxruntime"),
        _variant("fp32-openvino", "fp32", "openvino"),
        _variant("bf16", "bf16", "eager"),
        _variant("bf16-inductor", "bf16", "inductor"),
        # OpenVINO has bf16 only where the CPU has; elsewhere the variant is a skipped row.
        *([_variant("bf16-openvino", "bf16", "openvino")] if has_native_bf16() else []),
        _variant("dynamic", "dynamic", "eager"),
        _variant("ptq-inductor", "ptq", "inductor"),
        _variant("ptq-onnxruntime", "ptq", "onnxruntime"),
        _variant("ptq-openvino", "ptq", "openvino"),
        _variant("fp32-executorch", "fp32", "executorch"),
        _variant("ptq-executorch", "ptq", "executorch"),
        _variant("ptq-qnnpack", "ptq", "qnnpack"),
        _variant("qat-inductor", "qat", "inductor"),
        _variant(
            "ptq-inductor-w4",
            "ptq",
            "inductor",
            weight_bits=4,
            observer="minmax",
            keep_fp32=[KEPT],
            rounding="adaround",
        ),
        _variant("ptq-onnxruntime-minmax", "ptq", "onnxruntime", observer="minmax", keep_fp32=[KEPT]),
        _variant("ptq-openvino-minmax", "ptq", "openvino", observer="minmax", keep_fp32=[KEPT]),
        _variant("ptq-executorch-minmax", "ptq", "executorch", observer="minmax", keep_fp32=[KEPT]),
    )
}
STATIC = tuple(v.name for v in VARIANTS.values() if v.method in ("ptq", "qat"))
#: By what takes long to import: built together.
TOGETHER = (
    tuple(name for name in STATIC if VARIANTS[name].engine == "openvino"),
    tuple(name for name in VARIANTS if VARIANTS[name].engine == "executorch"),
)
WHOLE = tuple(name for name in STATIC if not VARIANTS[name].keep_fp32)


@dataclass(frozen=True)
class QatRun:
    """A short QAT: its settings, the loss of each step, and the trained state."""

    settings: dict[str, Any]
    losses: list[float]
    state: dict[str, torch.Tensor]


def train_qat(model: VideoRegressor, steps: int = QAT_STEPS, **settings: Any) -> QatRun:
    """Train a channels-last model as a sweep's trial does."""
    from qray.engines import pt2e

    reduced = {"reduce_range": range_is_reduced(native_isa(), settings.get("weight_bits", 8))}
    qat = pt2e.QatSettings.model_validate(reduced | settings)
    module = pt2e.prepare_qat(model.channels_last(), smooth_clips(2, seed=1), qat)
    losses: list[float] = []
    fit_settings = FitSettings(QAT_TRAINING, steps, TARGET_STD, seed=0)
    for _ in fit(module, toy_batches(steps), fit_settings, on_step=lambda loss, clips: losses.append(loss)):
        pass
    return QatRun(qat.model_dump(mode="json"), losses, module.state_dict())


def build_in_own_process(*builds: tuple[BuildRequest, Path]) -> None:
    """Build where NNCF and ExecuTorch may patch torch without the other tests noticing, as a run does."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for build, folder in builds:
            pool.submit(build_artifact, build, folder.name, folder).result()


@dataclass
class Shelf:
    """Artifacts by variant name."""

    root: Path
    _built: dict[str, Artifact] = field(default_factory=dict)
    _fresh: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def model(self) -> VideoRegressor:
        """The trained FP32 network that every artifact is made of."""
        return two_stages()

    @cached_property
    def clips(self) -> np.ndarray:
        """Clips that no artifact was calibrated on, uint8 (8, T, H, W, 3)."""
        return smooth_clips(8, seed=7).numpy()

    @cached_property
    def expected(self) -> np.ndarray:
        """FP32 predictions of `clips`, by the module itself."""
        with torch.no_grad():
            return self.model(torch.from_numpy(self.clips)).numpy()

    @cached_property
    def qat(self) -> QatRun:
        """A short QAT of the network."""
        return train_qat(self.model)

    @cached_property
    def simulated(self) -> torch.fx.GraphModule:
        """What "ptq-inductor" is compiled from. Read-only."""
        from qray.engines import pt2e

        module = pt2e.quantized(self.request("ptq-inductor"))
        assert isinstance(module, torch.fx.GraphModule)
        return module

    def request(self, name: str) -> BuildRequest:
        """What the artifact called `name` is built from."""
        made = request(VARIANTS[name], self.model)
        if made.variant.method == "qat":
            return replace(made, qat_state=self.qat.state, qat_settings=self.qat.settings)
        return made

    def __getitem__(self, name: str) -> Artifact:
        from qray.engines.artifact import read_artifact

        if name not in self._built:
            if names := next((group for group in TOGETHER if name in group), ()):
                build_in_own_process(*((self.request(each), self.root / each) for each in names))
                self._built |= {each: read_artifact(self.root / each) for each in names}
            else:
                self._built[name] = build_artifact(self.request(name), name, self.root / name)
        return self._built[name]

    def fresh(self, name: str) -> dict[str, Any]:
        """Predictions of the first 1, 2 and 5 clips, and the modules imported by then, of a process with an empty PATH
        that loads the artifacts of one engine and nothing else; INT8, which could lack the most, before FP32."""
        if name not in self._fresh:
            engine = VARIANTS[name].engine
            names = sorted(
                (each for each in VARIANTS if VARIANTS[each].engine == engine),
                key=lambda each: VARIANTS[each].method not in INT8_METHODS,
            )
            folders = [str(self[each].folder) for each in names]
            clips, answer, empty = self.root / "clips.npy", self.root / f"{engine}.json", self.root / "empty"
            np.save(clips, self.clips)
            empty.mkdir(exist_ok=True)
            script = Path(__file__).with_name("fresh_process.py")
            command = [sys.executable, str(script), str(clips), str(answer), *folders]
            done = subprocess.run(command, env=os.environ | {"PATH": str(empty)}, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            facts = json.loads(answer.read_text(encoding="utf-8"))
            self._fresh |= dict(zip(names, facts, strict=True))
        return self._fresh[name]
