"""Metrics in the Ray dashboard: clips per second, training loss, VAL and TEST MAE, by variant."""

from __future__ import annotations

import math
import time

from ray.util.metrics import Counter, Gauge


class Telemetry:
    """Reports for one variant, trial or training. Ray exports what is set here to its dashboard (Prometheus names
    `ray_qray_*`)."""

    def __init__(self, variant: str) -> None:
        tags = {"variant": variant}
        self._count = Counter("qray_clips", "Clips that a model has processed", ("variant",))
        self._rate = Gauge("qray_clips_per_second", "Clips processed per second", ("variant",))
        self._loss = Gauge("qray_training_loss", "Training loss, standardised units", ("variant",))
        self._mae = Gauge("qray_mae", "Mean absolute error, target units", ("variant", "split"))
        for metric in (self._count, self._rate, self._loss, self._mae):
            metric.set_default_tags(tags)
        self._last, self._seen = time.monotonic(), 0

    def clips(self, n: int) -> None:
        """Count n more clips."""
        if n <= 0:
            return
        self._count.inc(n)
        now = time.monotonic()
        self._rate.set(n / max(now - self._last, 1e-6))
        self._last = now

    def step(self, _step: int, loss: float, clips_this_epoch: int) -> None:
        """Report a training step; `clips_this_epoch` counts from the epoch's start."""
        self._loss.set(loss)
        self.clips(clips_this_epoch - self._seen if clips_this_epoch > self._seen else clips_this_epoch)
        self._seen = clips_this_epoch

    def mae(self, split: str, value: float) -> None:
        """Report the mean absolute error on a split."""
        if math.isfinite(value):
            self._mae.set(value, tags={"split": split})
