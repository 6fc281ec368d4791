"""One variant of a study: a method on an engine, with its settings."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qray.engines.catalog import ENGINES, engines_of
from qray.point import CPU, CUDA
from qray.study_verdict import Accuracy, PositiveInt, Section, known

Method = Literal["baseline", "fp32", "finetune", "tf32", "fp16", "bf16", "dynamic", "ptq", "qat"]
Device = Literal["cpu", "cuda"]
Observer = Literal["minmax", "histogram", "percentile", "entropy", "mse"]

INT8_METHODS = ("ptq", "qat")
#: Settings of a variant on how the ranges of activations are found, which every engine that quantizes has.
CALIBRATION = ("observer", "range_margin", "calibration_clips")


class Variant(Section):
    """One way to make the model deployable: a method on an engine with its settings.

    device: what it is built for, and evaluated and measured on: a CPU, or an NVIDIA GPU ("cuda"). There fp32 computes
    in FP32 throughout and tf32 rounds the factors of convolutions to 10 bits, as PyTorch does by default. cuda_graph:
    whether all that a call launches is captured once for each batch size, and replayed.

    `weight_bits` of method finetune is the width of the QAT that it is the FP32 control of. With `accuracy`, which ptq
    takes, layers are kept in FP32 until that holds on VAL; else those that `keep_fp32` names.

    How ptq finds the ranges of activations. observer "minmax": the extremes of all calibration clips; "percentile":
    what holds 99.99 % of the values; "entropy" and "mse": by what rounding and cutting off lose, as information or
    squared; "histogram": each engine's own ("mse" on inductor, 99.999 % on onnxruntime, extreme quantiles of each
    batch on openvino). range_margin: factor by which ranges are then widened. calibration_clips: by default
    `calibration.clips`. bias_correction: NNCF's, on openvino. u8u8: on onnxruntime, weights of full range wherever
    they run: a CPU whose INT8 products could overflow multiplies them as uint8 instead, which is slower there.
    rounding: each weight to the nearest code, or up or down as AdaRound learns on the calibration clips, without
    targets.
    """

    name: str
    method: Method
    # "none" is the mean predictor's, which is refused as a variant for a reason of its own.
    engine: Annotated[str, known(ENGINES, "none")]
    weight_bits: Literal[8, 4] = 8
    observer: Observer = "histogram"
    range_margin: float = Field(1.0, ge=1)
    calibration_clips: PositiveInt | None = None
    bias_correction: bool = False
    u8u8: bool = False
    keep_fp32: tuple[str, ...] = ()
    rounding: Literal["nearest", "adaround"] = "nearest"
    accuracy: Accuracy | None = None
    device: Device = "cpu"
    cuda_graph: bool = False

    @model_validator(mode="after")
    def _can_exist(self) -> Variant:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", self.name):
            raise ValueError(f"variant name {self.name!r}: use lower-case letters, digits, '.', '_' and '-'")
        if self.method == "baseline":
            raise ValueError("the mean predictor (baseline) is a row of every table; it is not listed")
        if self.engine not in (able := engines_of(self.method, self.device)):
            where = "" if self.device == CPU else f" on {self.device}"
            raise ValueError(
                f"method {self.method}{where} runs on {', '.join(able) or 'no engine'}, not on {self.engine}"
            )
        if self.cuda_graph and (self.device != CUDA or not ENGINES[self.engine].graphs):
            having = [name for name, engine in ENGINES.items() if engine.graphs]
            raise ValueError(f"cuda_graph belongs to device {CUDA}, on engine {', '.join(having)}")
        if self.method not in INT8_METHODS and self.keep_fp32:
            raise ValueError(f"keep_fp32 belongs to {' and '.join(INT8_METHODS)}")
        if self.accuracy is not None and self.method != "ptq":
            raise ValueError("accuracy belongs to ptq: it chooses the layers that are kept in FP32")
        if self.accuracy is not None and self.keep_fp32:
            raise ValueError("accuracy chooses the layers that keep_fp32 would name; leave one of the two out")
        if self.method not in (*INT8_METHODS, "finetune") and self.weight_bits != 8:
            raise ValueError(f"weight_bits belongs to {' and '.join(INT8_METHODS)}, and to finetune, their control")
        if self.method in INT8_METHODS and self.weight_bits not in ENGINES[self.engine].weight_bits:
            offering = [name for name in able if self.weight_bits in ENGINES[name].weight_bits]
            raise ValueError(f"weight_bits: {self.weight_bits} is offered on engine {', '.join(offering)} only")
        for name in self.remedies:
            if self.method != "ptq":
                raise ValueError(f"{name} belongs to ptq")
            having = [engine for engine, has in ENGINES.items() if name in (*CALIBRATION, *has.remedies)]
            if self.engine not in having:
                raise ValueError(f"{name} is offered on engine {', '.join(having)} only")
        return self

    @property
    def remedies(self) -> dict[str, Any]:
        """Settings by which its quantization differs from the default one of its method, engine and weight width."""
        names = (*CALIBRATION, *dict.fromkeys(name for engine in ENGINES.values() for name in engine.remedies))
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value != type(self).model_fields[name].default}

    @property
    def of_sweep(self) -> bool:
        """Whether it is made of the best trial of the sweep (qat), or trained with its settings (finetune)."""
        return self.method in ("qat", "finetune")

    def settings(self) -> dict[str, Any]:
        """What a build of it depends on: not the name, nor `accuracy`, of which `keep_fp32` comes, nor the number of
        calibration clips, which its calibration tells; and what is younger than the others only where it is used, so
        that it changes no other variant's key."""
        young = {name for name in ("range_margin", "bias_correction", "u8u8", "rounding", "device", "cuda_graph")
                 if getattr(self, name) == type(self).model_fields[name].default}  # fmt: skip
        return self.model_dump(mode="json", exclude={"name", "accuracy", "calibration_clips", *young})
