"""How a program of `torch.export` runs on a CPU or an NVIDIA GPU, by torch and numpy alone: a kit for a machine with a
GPU carries this file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.export.passes import move_to_device_pass

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
#: Calls before a capture, in which libraries choose kernels and allocate what a graph must not.
WARM_UP_CALLS = 3


@dataclass(frozen=True)
class Runner:
    """A torch callable as what predicts: uint8 numpy (B, T, H, W, 3) in, float32 numpy (B,) out."""

    #: Takes a tensor that is on the device, and gives one that is there.
    resident: Any
    device: str

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            given = torch.from_numpy(np.ascontiguousarray(clips)).to(self.device)
            return np.asarray(self.resident(given).cpu().numpy())


def runner(module: Any, threads: int, device: str = "cpu") -> Runner:
    """Wrap a torch callable that is on a device, on so many threads of the CPU."""
    torch.set_num_threads(threads)
    return Runner(module, device)


def on_device(
    program: torch.export.ExportedProgram, threads: int, device: str, *, tf32: bool = False, cuda_graph: bool = False,
    compiled: bool = False,
) -> Runner:  # fmt: skip
    """Run a program on "cpu" or "cuda": uint8 (B, T, H, W, 3) -> float32 (B,).

    tf32, cuda_graph: of a GPU, as `with_tf32` and `captured`. compiled: by `torch.compile`, whole; the first call
    compiles for its batch, the second of another size for any.
    """

    def prepared(module: Any) -> Any:
        # What cannot be compiled is an error: otherwise it would run eagerly, and nothing would say so.
        return torch.compile(module, fullgraph=True) if compiled else module

    if device == "cpu":
        return runner(prepared(program.module()), threads)
    module = move_to_device_pass(program, device).module()
    channels_last((*module.parameters(), *module.buffers()))
    call = with_tf32(prepared(module), tf32)
    return runner(captured(call, device) if cuda_graph else call, threads, device)


def channels_last(parameters: Iterable[torch.Tensor]) -> None:
    """Lay weights of convolutions out as tensor cores read them, in place; clips come in that order already (T, H, W,
    3)."""
    for parameter in parameters:
        if parameter.dim() in CHANNELS_LAST:
            parameter.data = parameter.data.contiguous(memory_format=CHANNELS_LAST[parameter.dim()])


def with_tf32(module: Any, allowed: bool) -> Any:
    """A module whose every call rounds what convolutions and products multiply to TF32 or does not, whatever others in
    this process do. By default PyTorch does in convolutions, and an FP32 variant is what its name says."""

    def call(clips: torch.Tensor) -> torch.Tensor:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
        return module(clips)

    return call


def captured(call: Any, device: str) -> Any:
    """What a call launches on a GPU, captured at the first batch of each size and replayed for the next; the result is
    overwritten by the next call.

    As https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs asks: warmed up on a stream of its own, with
    inputs and outputs that stay where they are.
    """
    graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}

    def replay(clips: torch.Tensor) -> torch.Tensor:
        if len(clips) not in graphs:
            given = clips.to(device, copy=True)
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_CALLS):
                    call(given)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = call(given)
            graphs[len(clips)] = graph, given, result
        graph, given, result = graphs[len(clips)]
        given.copy_(clips)
        graph.replay()
        return result

    return replay
