"""How long an NVIDIA GPU computes, and how many clips it predicts a second, by torch and numpy alone: a kit for a
machine with a GPU carries this file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

#: Batches that are on their way at once: one is copied while another is computed.
IN_FLIGHT = 2


def gpu_figures(
    predicts: Mapping[str, Any], clips: np.ndarray, *, blocks: int, min_calls: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """{"compute_ms": {name: milliseconds of each call}, "throughput_clips_s": {name: clips a second}} of those that run
    on the GPU with clips that are there (`torch_program.Runner`).

    clips: uint8 (B, T, H, W, 3), of one call. Computing is interleaved in rounds whose order is shuffled; each gets
    `seconds` for it, and as many for its throughput.
    """
    there = {name: predict.resident for name, predict in predicts.items() if getattr(predict, "device", "") == "cuda"}
    with torch.inference_mode():
        return {
            "compute_ms": _compute_ms(there, clips, blocks, -(-min_calls // blocks), seconds / blocks),
            "throughput_clips_s": {name: _throughput(call, clips, seconds, min_calls) for name, call in there.items()},
        }


def _event(timing: bool = False) -> Any:
    return torch.cuda.Event(enable_timing=timing)  # type: ignore[no-untyped-call]


def _compute_ms(
    calls: Mapping[str, Callable[[torch.Tensor], torch.Tensor]], clips: np.ndarray, blocks: int, least: int,
    seconds: float,
) -> dict[str, list[float]]:  # fmt: skip
    """Between two events of the stream: neither transfers nor the launching of a call that the GPU waits for it."""
    rng, given = np.random.default_rng(0), torch.from_numpy(clips).cuda()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(blocks):
        for name in rng.permutation(sorted(calls)):
            call, taken = calls[str(name)], list[float]()
            call(given)
            while len(taken) < least or sum(taken) < 1e3 * seconds:
                began, ended = _event(timing=True), _event(timing=True)
                began.record()
                call(given)
                ended.record()
                ended.synchronize()
                taken.append(began.elapsed_time(ended))
            found[str(name)] += taken
    return found


def _throughput(
    call: Callable[[torch.Tensor], torch.Tensor], clips: np.ndarray, seconds: float, least: int
) -> float:  # fmt: skip
    """Clips from pinned memory of the host to predictions there, two batches at once: while one is computed on one
    stream, another is copied on another."""
    source = torch.from_numpy(clips).pin_memory()
    given = [torch.empty_like(source, device="cuda") for _ in range(IN_FLIGHT)]
    back = [torch.empty(len(clips), dtype=torch.float32).pin_memory() for _ in range(IN_FLIGHT)]
    copied, done = ([_event() for _ in range(IN_FLIGHT)] for _ in range(2))
    copying, computing = (torch.cuda.Stream() for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    batches, began = 0, time.perf_counter()
    while batches < least or time.perf_counter() - began < seconds:
        at = batches % IN_FLIGHT
        # What was there before has come back, and its memory is free.
        done[at].synchronize()
        with torch.cuda.stream(copying):
            given[at].copy_(source, non_blocking=True)
            copied[at].record()
        with torch.cuda.stream(computing):
            computing.wait_event(copied[at])
            back[at].copy_(call(given[at]), non_blocking=True)
            done[at].record()
        batches += 1
    torch.cuda.synchronize()
    return batches * len(clips) / (time.perf_counter() - began)
