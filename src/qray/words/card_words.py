"""What a model card says in sentences: the form of the model, its verdict, its agreement with FP32, its speed."""

from __future__ import annotations

from qray.judge.evidence import Evidence, VariantEvidence
from qray.judge.guardrails import sentences
from qray.point import CPU
from qray.words.figures import capital, counted, megabytes, number, percent, signed, with_interval
from qray.words.phrases import NO_REASON, guardrail_words, pay_words

#: Below this p the difference depends on the size of the prediction.
SLOPE_ALPHA = 0.05


def method_words(evidence: Evidence, variant: VariantEvidence) -> str:
    """How the variant was made, of its method, engine and settings."""
    row, study = variant.row, evidence.study
    method, engine = str(row.method), row.engine
    settings = next(v for v in study.variants if v.name == variant.name)
    bits = row.weight_bits or 8
    share = row.int8_mac_share
    words = {
        "fp32": "FP32 weights and activations, not quantized",
        "finetune": "FP32, trained on for as long as QAT was: the control that tells quantization from longer training",
        "bf16": "backbone in bf16, the rest in FP32",
        "dynamic": "INT8 weights in the linear layers, activations quantized as they come; convolutions stay FP32",
        "ptq": f"static INT8 after training, {bits}-bit weights, ranges observed on {study.calibration.clips} TRAIN "
        "clips",
        "qat": f"INT8 by quantization-aware training from the FP32 checkpoint, {bits}-bit weights",
    }.get(method, method)
    if method == "ptq":
        words += f" by a {settings.observer} observer"
    if settings.weight_range == "mse":
        words += "; ranges of weights by least squares"
    if settings.rounding == "adaround":
        words += "; weights rounded by AdaRound on the same clips, without targets"
    if settings.keep_fp32:
        words += f"; kept in FP32: {', '.join(settings.keep_fp32)}"
    words += f"; engine {engine}"
    if share is not None and method in ("ptq", "qat", "dynamic"):
        words += f"; {percent(share, 1)} of the multiply-accumulates run in INT8, read from what the engine executes"
    return words


def verdict_words(evidence: Evidence, variant: VariantEvidence) -> str:
    """The verdict in a sentence; where there is none, that there is none and why."""
    row, compared = variant.row, variant.comparison
    if row.status != "ok":
        return f"It has no verdict: {row.status}, {row.reason or NO_REASON}."
    if variant.name == evidence.reference.name:
        return "It is the FP32 reference that every other variant of the study is compared with."
    if compared is None or compared.verdict is None:
        notes = (compared.notes if compared else ()) or variant.notes or evidence.notes
        why = "; ".join(notes) or "it was not compared with FP32"
        return f"It has no verdict: {why.rstrip('.')}."
    word = {
        "non-inferior": "As good as FP32 by the study's margin (non-inferior)",
        "inferior": "Worse than FP32 by more than the study's margin (inferior)",
        "inconclusive": "Whether it is as good as FP32 is not settled (inconclusive)",
    }[compared.verdict]
    if compared.refused:
        word = f"**Not to be shipped**: {compared.refused}. By its mean alone: {word[:1].lower()}{word[1:]}"
    differs = with_interval(*compared.difference.parts, sign=True, lead="95 % ")
    words = f"{word}: its MAE differs by {differs} on {compared.n} clips, against a margin of {compared.margin:g} "
    words += "declared before the run."
    if compared.verdict == "inconclusive" and compared.clips_to_settle is not None:
        words += f" About {compared.clips_to_settle:,} TEST clips would settle it."
    if compared.equivalent:
        words += " It is also equivalent: within plus and minus the margin (TOST at 0.05)."
    if compared.verdict_holm is not None and compared.verdict_holm != compared.verdict:
        words += f" Adjusted for the number of variants (Holm) it is {compared.verdict_holm}."
    if compared.guardrails and not compared.broken:
        words += f" No guardrail is broken: {guardrail_words(compared.guardrails)}."
    elif compared.broken and not compared.refused:
        words += f" It breaks guardrails, too: {sentences(compared.broken)}."
    return words


def agreement_words(variant: VariantEvidence) -> list[str]:
    """Bland-Altman against FP32 and against the label, and decisions that turn."""
    found = []
    for name, plot in (("FP32", variant.agreement), ("the label", variant.against_label)):
        if plot is None:
            continue
        bias = with_interval(plot.bias, plot.bias_low, plot.bias_high, sign=True, lead="95 % ")
        words = f"Against {name}: bias {bias}"
        if plot.lower is not None and plot.upper is not None:
            words += f", limits of agreement {signed(plot.lower)} to {signed(plot.upper)}"
        if plot.slope is not None and plot.slope_p is not None:
            depends = "differs from 0" if plot.slope_p < SLOPE_ALPHA else "does not differ from 0 beyond noise"
            words += f"; slope {signed(plot.slope, 3)}, which {depends} (p = {plot.slope_p:.2g})"
        found.append(words + ".")
    for turned in variant.reclassified:
        words = (
            f"At {turned.threshold:g}, {turned.up + turned.down} of {turned.n} clips ({percent(turned.share, 1)}, 95 % "
            f"{percent(turned.share_low, 1)} to {percent(turned.share_high, 1)}) lie on another side than FP32 puts "
            f"them: {turned.up} up, {turned.down} down"
        )
        if turned.sensitivity is not None and turned.reference_sensitivity is not None:
            own, other = turned.sensitivity, turned.reference_sensitivity
            words += f"; of those labelled below it finds {percent(own, 1)} (FP32: {percent(other, 1)})"
        found.append(f"{words}.")
    return found


def speed_words(variant: VariantEvidence) -> list[str]:
    """Size, latency and memory as measured; what was not measured is not mentioned."""
    row, found = variant.row, []
    if row.size_bytes is not None:
        ratio = f", {number(row.size_ratio)} of FP32" if row.size_ratio is not None else ""
        of_it = f" ({megabytes(row.weights_bytes)} MB of it weights)" if row.weights_bytes is not None else ""
        found.append(f"Size: {megabytes(row.size_bytes)} MB{ratio}{of_it}.")
    for at in variant.rows:
        if at.latency_p50_ms is None:
            continue
        percentiles = {90: at.latency_p90_ms, 99: at.latency_p99_ms}
        tail = [f"p{p} {number(value)}" for p, value in percentiles.items() if value is not None]
        times = ", ".join([f"p50 {number(at.latency_p50_ms)} ms", *tail])
        words = f"Latency: {times} per call of {at.batch}, {counted(at.threads or 0, 'thread')}, {at.latency_n} calls"
        if at.device != CPU:
            words += f" on {at.device}"
        if at.speedup is not None:
            words += f"; {number(at.speedup)}x the speed of FP32 eager"
        found.append(f"{words}; on {at.host}.")
        if at.peak_rss_mb is not None:
            found.append(f"Peak memory of a process that does nothing else: {number(at.peak_rss_mb, 0)} MB.")
    if variant.speed is not None and (pays := pay_words(row)):
        found.append(f"{capital(pays)}.")
    return found
