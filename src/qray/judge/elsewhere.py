"""What devices did with the variants of a kit that was carried to them, as outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qray.errors import QrayError
from qray.judge.clips import clips_of
from qray.judge.outcome import Outcome, provenance_of
from qray.kits.measured import Entry, Kit, Measured, flags_of, host_of, kept, provenance_of_device
from qray.measure.latency import Latency
from qray.measure.serving import Served
from qray.point import Point

#: Notes on what runs an artifact where it was built.
RUN = ("run_by", "fallbacks")


def outcomes_of_kits(out: Path, outcomes: Sequence[Outcome]) -> tuple[list[list[Outcome]], list[str]]:
    """For each device the outcomes of FP32, of the kit's variants there, and of the mean predictor, on the kit's clips;
    and sentences on what cannot be used. outcomes: of the run itself."""
    try:
        found = kept(out)
    except QrayError as error:
        return [], [f"devices measured by kits are left out: {error}"]
    own = {outcome.variant: outcome for outcome in outcomes if outcome.stage == "variant"}
    fp32, (mean,) = outcomes[0], (outcome for outcome in outcomes if outcome.stage == "baseline")
    carried, notes = [], []
    for measured, kit in found:
        there = []
        for entry in kit.variants:
            if entry.name in own and own[entry.name].key == entry.key:
                there.append(_there(measured, kit, entry, own[entry.name]))
            else:
                notes.append(f"{measured.device}: {entry.name} was measured as an artifact that this run no longer has")
        predicted = None if kit.mean is None else _clips(kit, [kit.mean] * len(kit.clips))
        carried.append([
            replace(fp32, predictions=_clips(kit, kit.fp32), predictions_path=None, latency={}, peak_rss_mb={},
                    memory_error={}, served={}, split="VAL"),
            *there, replace(mean, predictions=predicted, predictions_path=None, split="VAL"),
        ])  # fmt: skip
    return carried, notes


def _clips(kit: Kit, predicted: Sequence[float]) -> np.ndarray:
    return clips_of(kit.clips, kit.targets, predicted)


def _there(measured: Measured, kit: Kit, entry: Entry, own: Outcome) -> Outcome:
    """A variant on the device. What was not measured there is None, whatever it is on the run's own machine."""
    found = measured.variants[entry.name]
    points = [Point(device=measured.device, threads=at.threads, batch=at.batch) for at in measured.latency]
    timed = dict(zip(points, measured.latency, strict=True))
    by = provenance_of(provenance_of_device(measured))
    sustained = found.sustained_ms
    common: dict[str, Any] = {
        "load_average": measured.load_average,
        "host": host_of(measured),
        "cpu_flags": flags_of(measured),
    }
    latency = {
        at: Latency(
            there.blocks_ms.get(entry.name, []), error=there.errors.get(entry.name) or there.error,
            compute_ms=there.compute_ms.get(entry.name, []),
            throughput_clips_s=there.throughput_clips_s.get(entry.name), **common,
        )
        for at, there in timed.items() if entry.name in there.blocks_ms or entry.name in there.errors or there.error
    }  # fmt: skip
    return replace(
        own, device=measured.device, status=found.status, reason=found.reason, split="VAL",
        # What an engine executes, and by what, is known where its graph was read, which is at home.
        int8_mac_share=None, notes={name: own.notes[name] for name in own.notes if name not in RUN},
        predictions=_clips(kit, found.predictions) if found.status == "ok" else None, predictions_path=None,
        latency=latency, memory_error={},
        peak_rss_mb={points[0]: found.peak_rss_mb} if points and found.peak_rss_mb is not None else {},
        made={**own.made, "device": by}, measured={at: {"latency": by} for at in latency},
        served={points[0]: Served([found.cold_start_s])} if points and found.cold_start_s is not None else {},
        evaluate_s=None, device_rms=found.rms,
        sustained_ratio=sustained[-1] / sustained[0] if len(sustained) > 1 else None,
    )  # fmt: skip
