"""What a unit holds, and what its key hashes, of the device that it is done on."""

from __future__ import annotations

from typing import Any

from qray.point import CPU


def device_of(device: str) -> dict[str, Any]:
    """`Resources` of work on a device: a GPU, or none."""
    return {} if device == CPU else {"gpu": True, "on_gpu": True}


def on_gpu(device: str, gpu: str | None) -> dict[str, Any]:
    """What the outcome of work on a device depends on beside the device: which GPU it is, where that is known."""
    return {} if device == CPU else {"gpu": gpu}
