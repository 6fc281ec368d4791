"""Rows of results.parquet: each figure is its own variant's, measured, or null."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.outcomes import (
    AT,
    CLIPS,
    NOISE,
    STUDY,
    TARGET,
    baseline,
    fp32,
    latency,
    outcome,
    predictions,
    row,
    table,
    trial,
)

from qray.measure.serving import Served, Streams
from qray.point import Point
from qray.study import Measure

DESIGN = (
    "variant,key,method,engine,backbone,seed,device,threads,batch,frames,image_size,status,reason,split,n_clips,mae,"
    "mae_low,mae_high,rmse,r2,baseline_mae,delta_mae,delta_low,delta_high,margin,verdict,size_bytes,weights_bytes,"
    "size_ratio,latency_p50_ms,latency_p90_ms,latency_p99_ms,latency_n,speedup,speedup_engine,speedup_precision,"
    "peak_rss_mb,int8_mac_share,artifact,host,cpu_flags,load_average,versions,created_at"
)
FIGURES = (
    "n_clips,mae,mae_low,mae_high,rmse,r2,baseline_mae,delta_mae,delta_low,delta_high,verdict,size_bytes,"
    "weights_bytes,size_ratio,latency_p50_ms,latency_p90_ms,latency_p99_ms,latency_n,speedup,speedup_engine,"
    "speedup_precision,peak_rss_mb,int8_mac_share,artifact"
)


def test_what_a_gpu_computes_in_stands_beside_the_latency_of_the_whole_call() -> None:
    on_gpu = latency(80.0, compute_ms=[1.0, 2.0, 6.0, 2.0], throughput_clips_s=900.0)
    found = row("fp32", fp32(latency={AT: on_gpu}))
    assert [found[name] for name in ("latency_p50_ms", "compute_p50_ms", "throughput_clips_s")] == [80.0, 2.0, 900.0]
    assert row("fp32", fp32())["compute_p50_ms"] is row("fp32", fp32())["throughput_clips_s"] is None


SERVED = STUDY.model_copy(update={"measure": Measure(serving={"bound_ms": 100})})


def served(*streams: tuple[int, float, float | None]) -> Served:
    """Three cold starts, and of each number of streams the clips a second and the 95th percentile."""
    return Served([9.0, 1.0, 2.0], [Streams(count, clips_s, 100, 1.0, p95) for count, clips_s, p95 in streams])


def missing(status: str) -> Any:
    return outcome(
        "gone", "ptq", "openvino", predictions=None, size_bytes=None, weights_bytes=None, int8_mac_share=None,
        artifact=None, status=status, reason="OpenVINO is not installed",
    )  # fmt: skip


def test_the_columns_begin_with_those_of_the_design() -> None:
    assert ",".join(table(fp32()).column_names).startswith(DESIGN)


@pytest.mark.parametrize("status", ["skipped", "failed"])
def test_a_variant_that_is_not_there_has_a_reason_and_no_figure(status: str) -> None:
    found = row("gone", fp32(), missing(status), baseline())
    assert (found["status"], found["reason"]) == (status, "OpenVINO is not installed")
    assert [name for name in FIGURES.split(",") if found[name] is not None] == []


def test_what_was_not_measured_is_null() -> None:
    found = row("fp32", fp32(latency={}))
    unmeasured = ("latency_p50_ms", "latency_n", "speedup", "peak_rss_mb", "load_average", "threads", "val_mae")
    assert [name for name in unmeasured if found[name] is not None] == []


def test_the_reference_comes_first() -> None:
    assert table(fp32(), outcome("a", "ptq", "openvino"), baseline())["variant"][0].as_py() == "fp32"


def test_the_mean_predictor_has_a_row_of_its_own() -> None:
    found = row("mean-predictor", fp32(), baseline())
    assert (found["stage"], found["mae"]) == ("baseline", pytest.approx(np.abs(TARGET - 55).mean()))


def test_every_variant_is_held_against_the_mean_predictor() -> None:
    found = row("fp32", fp32(), baseline())
    assert (found["baseline_mae"], found["beats_baseline"]) == (pytest.approx(np.abs(TARGET - 55).mean()), True)


def test_a_variant_that_does_not_beat_the_mean_predictor_says_so() -> None:
    found = row("fp32", fp32(noise=20.0), baseline())
    assert (found["status"], found["beats_baseline"]) == ("ok", False)
    assert found["reason"].startswith("does not beat the mean predictor: ")


def test_the_reference_has_no_verdict_on_itself() -> None:
    assert row("fp32", fp32())["verdict"] is None


def test_the_same_predictions_are_non_inferior_by_a_difference_of_exactly_zero() -> None:
    found = row("same", fp32(), outcome("same", "fp32", "openvino"))
    assert [found[name] for name in ("delta_mae", "delta_low", "delta_high", "verdict")] == [0, 0, 0, "non-inferior"]


def test_a_much_worse_variant_is_inferior() -> None:
    assert row("worse", fp32(), outcome("worse", "ptq", "openvino", noise=4.0))["verdict"] == "inferior"


def test_the_margin_of_the_study_stands_in_every_row_of_a_variant() -> None:
    assert row("gone", fp32(), missing("failed"))["margin"] == 1.0


def test_predictions_that_are_not_numbers_make_a_failed_row() -> None:
    broken = predictions(np.r_[np.nan, (TARGET + NOISE)[1:]])
    found = row("nan", fp32(), outcome("nan", "ptq", "openvino", predictions=broken), baseline())
    assert (found["status"], found["mae"], found["verdict"]) == ("failed", None, None)
    assert found["reason"] == f"no accuracy: 1 of {CLIPS} predictions are not finite"


def test_a_clip_that_the_reference_could_not_read_is_left_out_of_every_row() -> None:
    unread = predictions(np.r_[np.nan, (TARGET + NOISE)[1:]])
    found = row("other", fp32(predictions=unread), outcome("other", "fp32", "openvino", predictions=unread))
    assert (found["status"], found["n_clips"], found["delta_mae"]) == ("ok", CLIPS - 1, 0.0)


def test_clips_are_paired_by_name_not_by_position() -> None:
    shuffled = np.random.default_rng(0).permutation(predictions(TARGET + NOISE))
    assert row("s", fp32(), outcome("s", "fp32", "openvino", predictions=shuffled))["delta_mae"] == pytest.approx(0)


def test_one_clip_has_an_error_but_neither_interval_nor_verdict() -> None:
    one = predictions([58.0], np.array([55.0]))
    found = row("b", fp32(predictions=one), outcome("b", "ptq", "openvino", predictions=one))
    assert [found[name] for name in ("mae", "mae_low", "delta_low", "verdict")] == [3.0, None, None, None]


def test_a_verdict_that_the_data_cannot_carry_is_null_with_a_reason() -> None:
    one = predictions([58.0], np.array([55.0]))
    found = row("b", fp32(predictions=one), outcome("b", "ptq", "openvino", predictions=one))
    assert (found["status"], found["verdict_holm"], found["equivalent"]) == ("ok", None, None)
    assert found["reason"].startswith("no verdict: one clip")


def test_a_verdict_comes_with_its_p_values_and_equivalence() -> None:
    found = row("same", fp32(), outcome("same", "fp32", "openvino"))
    assert found["p_noninferior"] < 0.025
    assert (found["verdict_holm"], found["equivalent"], found["clips_to_settle"]) == ("non-inferior", True, None)


def test_more_variants_raise_the_adjusted_p_value_and_not_its_own() -> None:
    own, others = outcome("a", "ptq", "openvino"), [outcome(name, "fp32", "openvino") for name in "bcd"]
    alone, among = row("a", fp32(), own), row("a", fp32(), own, *others)
    assert among["p_noninferior"] == alone["p_noninferior"]
    assert among["p_holm"] == pytest.approx(4 * alone["p_holm"])


def test_an_inconclusive_verdict_says_how_many_clips_would_settle_it() -> None:
    found = row("x", fp32(), outcome("x", "ptq", "openvino", noise=1.4))
    assert found["verdict"] == "inconclusive"
    assert found["clips_to_settle"] > CLIPS


def test_agreement_with_fp32_stands_in_the_row() -> None:
    shifted = predictions(TARGET + NOISE + 2.0)
    found = row("x", fp32(), outcome("x", "ptq", "openvino", predictions=shifted))
    assert [found[name] for name in ("bias_to_fp32", "loa_low", "loa_high", "max_moved")] == pytest.approx([2] * 4)


def test_clips_that_moved_are_a_share_with_its_interval() -> None:
    moved = (TARGET + NOISE).copy()
    moved[:6] += 7.0
    found = row("x", fp32(), outcome("x", "ptq", "openvino", predictions=predictions(moved)))
    assert found["moved_share"] == pytest.approx(6 / CLIPS)
    assert found["moved_low"] < found["moved_share"] < found["moved_high"]


def test_fp32_has_intervals_and_no_comparison() -> None:
    found = row("fp32", fp32())
    assert found["rmse_low"] < found["rmse"] < found["rmse_high"]
    assert found["r2_low"] < found["r2"] < found["r2_high"]
    assert [found[name] for name in ("p_holm", "moved_share", "bias_to_fp32")] == [None, None, None]


def test_a_row_names_its_predictions() -> None:
    path = "predictions/variant=x/test.parquet"
    assert row("x", fp32(), outcome("x", "ptq", "openvino", predictions_path=path))["predictions"] == path


def test_a_variant_without_a_reference_has_no_difference() -> None:
    found = row("ptq", fp32(predictions=None, status="failed", reason="x"), outcome("ptq", "ptq", "openvino"))
    assert (found["mae"] is not None, found["delta_mae"], found["verdict"]) == (True, None, None)


def test_the_speed_up_is_the_product_of_engine_and_precision() -> None:
    engine, int8 = outcome("ov", "fp32", "openvino", ms=60.0), outcome("int8", "ptq", "openvino", ms=20.0)
    found = row("int8", fp32(), engine, int8)
    assert [found[name] for name in ("speedup", "speedup_engine", "speedup_precision")] == pytest.approx([4, 4 / 3, 3])


def test_without_fp32_on_the_engine_the_speed_up_is_not_split() -> None:
    found = row("int8", fp32(), outcome("int8", "ptq", "openvino", ms=20.0))
    assert found["speedup"] == pytest.approx(4.0)
    assert [found[name] for name in ("speedup_engine", "speedup_precision")] == [None, None]


def test_each_threads_and_batch_is_a_row_compared_with_the_reference_at_the_same() -> None:
    slow = fp32(latency={AT: latency(80.0), Point(threads=2, batch=8): latency(400.0)})
    fast = outcome("int8", "ptq", "openvino", latency={AT: latency(20.0), Point(threads=2, batch=8): latency(50.0)})
    rows = [r for r in table(slow, fast).to_pylist() if r["variant"] == "int8"]
    assert [(r["threads"], r["batch"]) for r in rows] == [(1, 1), (2, 8)]
    assert [r["speedup"] for r in rows] == pytest.approx([4.0, 8.0])


def test_a_device_is_compared_with_itself_alone() -> None:
    """INT8 on the CPU and FP32 on the GPU are two machines, whatever the engine: no ratio is of both."""
    gpu = Point(device="cuda", threads=1, batch=1)
    slow = fp32(latency={AT: latency(80.0), gpu: latency(4.0)})
    engine = outcome("fp32-ov", "fp32", "openvino", latency={AT: latency(40.0)})
    fast = outcome("int8", "ptq", "openvino", latency={AT: latency(20.0), gpu: latency(2.0)})
    on_cpu, on_gpu = (r for r in table(slow, engine, fast).to_pylist() if r["variant"] == "int8")
    assert [(r["device"], r["best_fp32"]) for r in (on_cpu, on_gpu)] == [("cpu", "fp32-ov"), ("cuda", "fp32")]
    assert [r["speedup"] for r in (on_cpu, on_gpu)] == pytest.approx([4.0, 2.0])
    assert on_cpu["speedup_precision"] == pytest.approx(2.0)
    assert on_gpu["speedup_precision"] is None, "FP32 of its engine was not measured on that device"


def test_what_was_not_measured_was_on_no_device() -> None:
    assert row("fp32", fp32(latency={}))["device"] is None


def test_a_latency_row_names_the_host_that_it_was_measured_on() -> None:
    assert row("fp32", fp32())["host"] == "the measuring host"


def test_a_percentile_that_the_sample_cannot_carry_is_null() -> None:
    found = row("fp32", fp32(latency={AT: latency(80.0, calls=30)}))
    assert (found["latency_n"], found["latency_p90_ms"], found["latency_p99_ms"]) == (30, 80.0, None)


def test_the_energy_of_all_calls_is_that_of_a_clip_each() -> None:
    eight = Point(threads=1, batch=8)
    found = row("fp32", fp32(latency={eight: latency(80.0, calls=30, joules=120.0)}))
    assert (found["batch"], found["joules_per_clip"]) == (8, 0.5)
    assert row("fp32", fp32())["joules_per_clip"] is None


def test_of_streams_that_keep_to_the_bound_those_that_predict_most_are_shown() -> None:
    found = row("fp32", fp32(served={AT: served((1, 10.0, 90.0), (2, 19.0, 100.0), (4, 20.0, 210.0))}), study=SERVED)
    names = ("cold_start_s", "streams", "streams_clips_s", "streams_p95_ms", "reason")
    assert [found[name] for name in names] == [2.0, 2, 19.0, 100.0, None]


def test_streams_that_all_break_the_bound_are_a_reason() -> None:
    found = row("fp32", fp32(served={AT: served((1, 5.0, 200.0), (2, 6.0, None))}), study=SERVED)
    assert (found["streams"], found["streams_clips_s"], found["cold_start_s"]) == (None, None, 2.0)
    assert found["reason"] == "no number of streams keeps 95 % of its calls within 100 ms"


def test_streams_that_were_not_measured_are_a_reason() -> None:
    found = row("fp32", fp32(served={AT: Served(error="it crashed")}), study=SERVED)
    assert found["streams"] is found["cold_start_s"] is None
    assert found["reason"] == "cold starts and streams not measured: it crashed"


def test_a_latency_that_failed_leaves_its_reason_and_no_figure() -> None:
    found = row("fp32", fp32(latency={AT: latency(0.0, calls=0, error="it crashed")}))
    assert (found["latency_p50_ms"], found["latency_n"], found["speedup"]) == (None, None, None)
    assert found["reason"] == "latency not measured: it crashed"


def test_memory_without_latency_is_a_row_all_the_same() -> None:
    found = row("fp32", fp32(latency={}, peak_rss_mb={AT: 300.0}))
    assert (found["threads"], found["peak_rss_mb"], found["latency_p50_ms"]) == (1, 300.0, None)


def test_the_size_ratio_is_to_the_reference() -> None:
    assert row("small", fp32(), outcome("small", "ptq", "openvino", size_bytes=1_000_000))["size_ratio"] == 0.25


def test_a_trial_is_a_row_of_val() -> None:
    found = row("qat-w8-abcdef", fp32(), trial(4.5))
    assert (found["stage"], found["split"], found["mae"], found["val_mae"]) == ("trial", "VAL", 4.5, 4.5)


def test_a_trial_that_failed_has_a_reason_and_no_figure() -> None:
    found = row("qat-w8-abcdef", fp32(), trial(None, status="failed", reason="the trial did not finish"))
    assert (found["status"], found["mae"]) == ("failed", None)


def test_the_same_outcomes_give_the_same_table() -> None:
    assert table(fp32(), baseline()) == table(fp32(), baseline())
