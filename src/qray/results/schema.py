"""The Parquet schema of results.parquet. A figure that was not measured is null."""

from __future__ import annotations

import pyarrow as pa

_S, _F, _I, _B = pa.string(), pa.float64(), pa.int64(), pa.bool_()

RESULTS = pa.schema(
    [
        ("variant", _S), ("key", _S), ("method", _S), ("engine", _S), ("backbone", _S), ("seed", _I), ("device", _S),
        ("threads", _I), ("batch", _I), ("frames", _I), ("image_size", _I), ("status", _S), ("reason", _S),
        ("split", _S), ("n_clips", _I), ("mae", _F), ("mae_low", _F), ("mae_high", _F), ("rmse", _F), ("r2", _F),
        ("baseline_mae", _F), ("delta_mae", _F), ("delta_low", _F), ("delta_high", _F), ("margin", _F),
        ("verdict", _S), ("size_bytes", _I), ("weights_bytes", _I), ("size_ratio", _F), ("latency_p50_ms", _F),
        ("latency_p90_ms", _F), ("latency_p99_ms", _F), ("latency_n", _I), ("speedup", _F), ("speedup_engine", _F),
        ("speedup_precision", _F), ("peak_rss_mb", _F), ("int8_mac_share", _F), ("artifact", _S), ("host", _S),
        ("cpu_flags", _S), ("load_average", _F), ("versions", _S),
        # UTC, without saying so in its type: a spreadsheet has no time zones, and pandas refuses to write one there.
        ("created_at", pa.timestamp("us")),
        # Beyond the contract:
        ("stage", _S),  # variant, baseline, or trial of the QAT sweep
        ("weight_bits", _I), ("settings", _S),  # of a QAT trial or what came of it, JSON
        ("ratio_to_baseline", _F), ("ratio_low", _F), ("ratio_high", _F), ("beats_baseline", _B),
        ("speedup_low", _F), ("speedup_high", _F),
        # Against the fastest FP32 variant, whatever its engine: pays is null where that is not settled, and for FP32.
        ("best_fp32", _S), ("speedup_best_fp32", _F), ("speedup_best_fp32_low", _F), ("speedup_best_fp32_high", _F),
        ("pays", _B),
        # On VAL clips, target units: what the engine's kernels add (RMS and maximum of deployed - simulated), what
        # quantization costs (RMS of simulated - FP32), and the share of activations outside the calibrated ranges.
        ("parity_max_abs", _F), ("kernel_rms", _F), ("quantization_rms", _F), ("outside_share", _F),
        ("isa", _S),  # the instruction set that the artifact was built for
        ("val_mae", _F), ("train_s", _F), ("build_s", _F), ("evaluate_s", _F),
        ("predictions", _S),  # on TEST, relative to OUT
        ("made_elsewhere", _S),  # JSON: units of the row whose host, flags or versions are not those of its columns
        ("rmse_low", _F), ("rmse_high", _F), ("r2_low", _F), ("r2_high", _F),
        ("p_noninferior", _F), ("p_holm", _F), ("verdict_holm", _S), ("equivalent", _B), ("p_equivalent", _F),
        ("clips_to_settle", _I), ("moved_share", _F), ("moved_low", _F), ("moved_high", _F), ("max_moved", _F),
        ("bias_to_fp32", _F), ("loa_low", _F), ("loa_high", _F),  # Bland-Altman of predictions against FP32's
        # Guardrails beside the mean. shippable: non-inferior, better than the mean predictor, and no guardrail broken;
        # guardrails: sentences on the broken ones. Figures in target units but for tied (clips) and distinct_share.
        ("shippable", _B), ("guardrails", _S), ("worst_class_delta", _F), ("worst_class_low", _F),
        ("worst_class_high", _F), ("class_shift", _F), ("local_move", _F), ("tail_moved", _F), ("tail_moved_high", _F),
        ("tied_low", _I), ("tied_high", _I), ("distinct_share", _F),
    ]
)  # fmt: skip
