"""The row of results.parquet: one annotated class, from which its schema, every table and their legend derive."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_type_hints

import pyarrow as pa

from qray.point import Point

#: How tables show a column (`qray.words.cells`); "figure": two digits, and what is no float as it is.
Form = Literal["figure", "difference", "verdict", "megabytes", "fold", "causes", "whole", "percent", "tenths", "yes_no"]


@dataclass(frozen=True)
class Column:
    """What a column means, in which unit, and how it is shown."""

    meaning: str
    #: "target" stands for the unit of the target; None for words, counts and ratios.
    unit: str | None = None
    #: Its heading in the terminal's table and in the report's; None where neither shows it.
    title: str | None = None
    #: How dispensable it is in a terminal: the highest goes first where width is short. None: not shown there.
    rank: int | None = None
    report: bool = False
    #: Whether it says which row it is rather than what was found: a parameter in a tracker, no metric.
    names_row: bool = False
    #: Whether an empty one takes back what an earlier table said.
    clears: bool = False
    form: Form = "figure"


def _names(meaning: str) -> Column:
    return Column(meaning, names_row=True)


_S: TypeAlias = str | None
_F: TypeAlias = float | None
_I: TypeAlias = int | None
_B: TypeAlias = bool | None
_95 = "of its 95 % interval"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant at one point (device, threads, batch); or the mean predictor, or a trial of the sweep. What was not
    measured is None."""

    variant: Annotated[str, Column("name of the variant in the study", title="variant", rank=0, report=True,
                                   names_row=True)]  # fmt: skip
    key: Annotated[str, _names("of the build; of the evaluation of the mean predictor; of a trial")]
    method: Annotated[str, _names("fp32, tf32, fp16, bf16, dynamic, ptq, qat, finetune (FP32 trained as long as QAT), "
                                  "baseline")]  # fmt: skip
    engine: Annotated[str, _names("what executes it")]
    backbone: Annotated[_S, _names("network applied to each frame, or to whole clips")] = None
    seed: Annotated[_I, _names("of the study")] = None
    device: Annotated[_S, _names("where it is evaluated and measured: cpu, cuda (an NVIDIA GPU), or that of a kit")] = (
        None
    )
    threads: Annotated[_I, _names("CPU threads of the measurement")] = None
    batch: Annotated[_I, _names("clips per call in the measurement")] = None
    frames: Annotated[_I, _names("frames of a clip")] = None
    image_size: Annotated[_I, Column("height and width of a frame", "pixels", names_row=True)] = None
    status: Annotated[str, Column("ok, skipped (this machine cannot) or failed")] = "ok"
    reason: Annotated[_S, Column("why it is not ok, or what of it is not known and why", clears=True)] = None
    split: Annotated[_S, _names("whose clips were predicted: TEST; of a trial, and by a kit, VAL")] = None
    n_clips: Annotated[_I, Column("clips that it and FP32 both predicted")] = None
    mae: Annotated[_F, Column("mean absolute error", "target", "MAE", 0, report=True)] = None
    mae_low: Annotated[_F, Column(f"lower end {_95}, bootstrap over clips", "target")] = None
    mae_high: Annotated[_F, Column(f"upper end {_95}", "target")] = None
    rmse: Annotated[_F, Column("root mean squared error", "target")] = None
    r2: Annotated[_F, Column("1 - SSE/SST", title="R²", report=True)] = None
    baseline_mae: Annotated[_F, Column("MAE of the mean predictor on the same clips", "target")] = None
    delta_mae: Annotated[_F, Column("MAE minus that of FP32 on the same clips", "target", "Δ to fp32 (95 %)", 1,
                                    report=True, form="difference")] = None  # fmt: skip
    delta_low: Annotated[_F, Column(f"lower end {_95}, paired over clips", "target")] = None
    delta_high: Annotated[_F, Column(f"upper end {_95}", "target")] = None
    margin: Annotated[_F, Column("loss of MAE that the study puts up with", "target")] = None
    verdict: Annotated[_S, Column("non-inferior, inferior or inconclusive, by the interval and the margin", None,
                                  "verdict", 0, report=True, clears=True, form="verdict")] = None  # fmt: skip
    size_bytes: Annotated[_I, Column("of the artifact as shipped", "bytes", "MB", 3, True, form="megabytes")] = None
    weights_bytes: Annotated[_I, Column("of the parameters as stored", "bytes", "weights MB", 5,
                                        form="megabytes")] = None  # fmt: skip
    size_ratio: Annotated[_F, Column("size over that of FP32 eager")] = None
    latency_p50_ms: Annotated[_F, Column("median time of a call", "ms", "p50 ms", 2, report=True)] = None
    latency_p90_ms: Annotated[_F, Column("90th percentile; null where the sample cannot carry it", "ms")] = None
    latency_p99_ms: Annotated[_F, Column("99th percentile; null where the sample cannot carry it", "ms")] = None
    latency_n: Annotated[_I, Column("calls that were timed")] = None
    speedup: Annotated[_F, Column("latency of FP32 eager at that point over its own, interleaved", None, "speed-up", 0,
                                  report=True, form="fold")] = None  # fmt: skip
    speedup_engine: Annotated[_F, Column("of which the engine gives so much in FP32", None, "engine × precision",
                                         7, form="causes")] = None  # fmt: skip
    speedup_precision: Annotated[_F, Column("of which fewer bits give so much on that engine")] = None
    peak_rss_mb: Annotated[_F, Column("peak memory of a process that only predicts", "MB", "RSS MB", 6,
                                      report=True, form="whole")] = None  # fmt: skip
    int8_mac_share: Annotated[_F, Column("share of multiply-accumulates that the engine executes in INT8", None,
                                         "INT8", 4, report=True, form="percent")] = None  # fmt: skip
    artifact: Annotated[_S, Column("its folder, relative to OUT")] = None
    host: Annotated[_S, Column("that measured it; without a measurement, that built it")] = None
    cpu_flags: Annotated[_S, Column("instruction sets of that host")] = None
    load_average: Annotated[_F, Column("running processes in the minute before the measurement")] = None
    versions: Annotated[_S, Column("packages it was built with, JSON")] = None
    created_at: Annotated[datetime | None, Column("when the last unit of the run had ended, UTC")] = None
    stage: Annotated[str, _names("variant, baseline, or trial of the QAT sweep")] = "variant"
    cuda_graph: Annotated[_B, _names("on cuda: whether its kernels are captured once and replayed")] = None
    weight_bits: Annotated[_I, _names("of INT8 variants: bits of a weight")] = None
    settings: Annotated[_S, Column("of a QAT trial, or of what came of it, JSON")] = None
    ratio_to_baseline: Annotated[_F, Column("MAE over that of the mean predictor")] = None
    ratio_low: Annotated[_F, Column(f"lower end {_95}")] = None
    ratio_high: Annotated[_F, Column(f"upper end {_95}")] = None
    beats_baseline: Annotated[_B, Column("whether that interval lies under 1")] = None
    speedup_low: Annotated[_F, Column(f"lower end {_95} of the speed-up, over rounds")] = None
    speedup_high: Annotated[_F, Column(f"upper end {_95} of the speed-up")] = None
    best_fp32: Annotated[_S, Column("the fastest FP32 variant, whatever its engine")] = None
    speedup_best_fp32: Annotated[_F, Column("latency of that one over its own")] = None
    speedup_best_fp32_low: Annotated[_F, Column(f"lower end {_95}, which allows for the choice")] = None
    speedup_best_fp32_high: Annotated[_F, Column(f"upper end {_95}")] = None
    pays: Annotated[_B, Column("whether fewer bits are faster than that; null where not settled, and for FP32")] = None
    device_rms: Annotated[_F, Column("RMS of a device's predictions less those of where it was built", "target")] = None
    cold_start_s: Annotated[_F, Column("from the start of a process to its first prediction", "s")] = None
    compute_p50_ms: Annotated[_F, Column("on a GPU: median time of a call's kernels, clips there already", "ms")] = None
    throughput_clips_s: Annotated[_F, Column("on a GPU: of two batches at once, transfers and all", "clips/s")] = None
    streams: Annotated[_I, Column("of the numbers of streams at once whose calls keep to the bound of the study, the "
                                  "one that predicts the most clips a second")] = None  # fmt: skip
    streams_clips_s: Annotated[_F, Column("of all those streams together", "clips/s")] = None
    streams_p95_ms: Annotated[_F, Column("95th percentile of their calls", "ms")] = None
    sustained_ratio: Annotated[_F, Column("median latency at the end of minutes of work over that at its start")] = None
    joules_per_clip: Annotated[_F, Column("used by the CPU's packages or the GPU, idle and all; null where they do "
                                          "not tell", "J")] = None  # fmt: skip
    parity_max_abs: Annotated[_F, Column("largest difference that the engine's kernels make, on VAL", "target")] = None
    kernel_rms: Annotated[_F, Column("RMS of deployed - simulated predictions on VAL", "target")] = None
    quantization_rms: Annotated[_F, Column("RMS of simulated - FP32 predictions on VAL", "target")] = None
    outside_share: Annotated[_F, Column("share of VAL activations outside the calibrated ranges")] = None
    fp32_layers: Annotated[_I, Column("convolutions that its engine's quantizer leaves in FP32 by its own rule")] = None
    run_by: Annotated[_S, Column("layers, or of ExecuTorch operators, by the kernels that run them where it was built, "
                                 "JSON")] = None  # fmt: skip
    fallbacks: Annotated[_S, Column("operators that run by an engine's slow reference kernels, by kind, JSON")] = None
    kept_fp32: Annotated[_S, Column("of mixed precision: layers that stay in FP32")] = None
    kept_layers: Annotated[_I, Column("how many those are")] = None
    layers: Annotated[_I, Column("of how many that could")] = None
    evaluations: Annotated[_I, Column("mixes that were built and evaluated on VAL to find those")] = None
    isa: Annotated[_S, Column("instruction set that it was built for")] = None
    val_mae: Annotated[_F, Column("of the QAT trial that it was built from", "target")] = None
    train_s: Annotated[_F, Column("training of its weights", "s")] = None
    build_s: Annotated[_F, Column("building", "s")] = None
    evaluate_s: Annotated[_F, Column("evaluation on TEST", "s")] = None
    predictions: Annotated[_S, Column("its predictions on TEST, relative to OUT")] = None
    made_elsewhere: Annotated[_S, Column("units whose host, flags or versions are not the row's, JSON")] = None
    rmse_low: Annotated[_F, Column(f"lower end {_95}", "target")] = None
    rmse_high: Annotated[_F, Column(f"upper end {_95}", "target")] = None
    r2_low: Annotated[_F, Column(f"lower end {_95}")] = None
    r2_high: Annotated[_F, Column(f"upper end {_95}")] = None
    p_noninferior: Annotated[_F, Column("one-sided p of a loss of at least the margin")] = None
    p_holm: Annotated[_F, Column("the same, adjusted for all variants of the study")] = None
    verdict_holm: Annotated[_S, Column("the verdict with that", clears=True)] = None
    equivalent: Annotated[_B, Column("whether the difference is within plus and minus the margin (TOST)",
                                     title="equivalent", report=True,
                                     form="yes_no")] = None  # fmt: skip
    p_equivalent: Annotated[_F, Column("p of that")] = None
    clips_to_settle: Annotated[_I, Column("clips in all that would settle an inconclusive verdict")] = None
    moved_share: Annotated[_F, Column("share of clips that are predicted elsewhere than by FP32", title="moved",
                                      report=True, form="tenths")] = None  # fmt: skip
    moved_low: Annotated[_F, Column(f"lower end {_95}")] = None
    moved_high: Annotated[_F, Column(f"upper end {_95}")] = None
    max_moved: Annotated[_F, Column("the farthest move", "target")] = None
    bias_to_fp32: Annotated[_F, Column("mean difference of predictions to FP32's (Bland-Altman)", "target")] = None
    loa_low: Annotated[_F, Column("lower limit of agreement with FP32", "target")] = None
    loa_high: Annotated[_F, Column("upper limit of agreement with FP32", "target")] = None
    shippable: Annotated[_B, Column("non-inferior, better than the mean predictor, and no guardrail broken",
                                    clears=True)] = None  # fmt: skip
    guardrails: Annotated[_S, Column("sentences on the broken guardrails", clears=True)] = None
    worst_class_delta: Annotated[_F, Column("change of MAE in the class that loses most", "target")] = None
    worst_class_low: Annotated[_F, Column(f"lower end {_95}", "target")] = None
    worst_class_high: Annotated[_F, Column(f"upper end {_95}", "target")] = None
    class_shift: Annotated[_F, Column("mean move of the class that moves most in one direction", "target")] = None
    local_move: Annotated[_F, Column("mean move of the clips of the place that moves farthest", "target")] = None
    tail_moved: Annotated[_F, Column("a high quantile of the moves", "target")] = None
    tail_moved_high: Annotated[_F, Column(f"upper end {_95}", "target")] = None
    tied_low: Annotated[_I, Column("clips at the lowest prediction")] = None
    tied_high: Annotated[_I, Column("clips at the highest prediction")] = None
    distinct_share: Annotated[_F, Column("distinct predictions over those of FP32")] = None

    @property
    def point(self) -> Point | None:
        """Where it was measured, or None where nothing was."""
        if self.device is None or self.threads is None or self.batch is None:
            return None
        return Point(device=self.device, threads=self.threads, batch=self.batch)

    @property
    def packages(self) -> dict[str, str]:
        """Versions of what it was built with, by package; empty where they are not known."""
        return {name: str(version) for name, version in _object(self.versions).items()}

    @property
    def chosen(self) -> dict[str, Any]:
        """Settings of a trial of the sweep, or of what came of one; empty where they are not known."""
        return _object(self.settings)


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


_HINTS = get_type_hints(Row, include_extras=True)
#: Each column by its name, in order.
COLUMNS: dict[str, Column] = {name: get_args(hint)[1] for name, hint in _HINTS.items()}
_STORED: dict[Any, pa.DataType] = {
    # UTC, without saying so in its type: a spreadsheet has no time zones, and pandas refuses to write one there.
    str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_(), datetime: pa.timestamp("us"),
}  # fmt: skip
#: The schema of results.parquet.
RESULTS = pa.schema(
    [(name, next(_STORED[kind] for kind in (get_args(kinds) or (kinds,)) if kind in _STORED))
     for name, kinds in ((name, get_args(hint)[0]) for name, hint in _HINTS.items())]
)  # fmt: skip


def is_words(name: str) -> bool:
    """Whether a column holds words, which tables set to the left."""
    return RESULTS.field(name).type == pa.string()


def to_table(rows: Iterable[Row]) -> pa.Table:
    """Rows as results.parquet holds them."""
    return pa.Table.from_pylist([vars(row) for row in rows], schema=RESULTS)


def from_table(table: pa.Table) -> list[Row]:
    """Rows of results.parquet; columns that this version does not know are left out."""
    return [Row(**row) for row in table.select(RESULTS.names).to_pylist()]
