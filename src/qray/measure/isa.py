"""Instruction sets: what an artifact is made for, what a CPU of one can compute, and what this machine is. Light."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from qray.measure.host import cpu_flags, gpu_name, has_int8_dot_product, has_native_bf16

#: Instruction sets that an artifact can be made for, from the least to the most, and the CPU flags that each needs.
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "any": (),
    "avx2": ("avx2", "fma"),
    "avx-vnni": ("avx2", "fma", "avx_vnni"),
    "avx512": ("avx2", "fma", "avx512f"),
    "avx512-vnni": ("avx2", "fma", "avx512f", "avx512_vnni"),
    "amx": ("avx2", "fma", "avx512f", "avx512_vnni", "amx_int8"),
    "neon": ("asimd",),
    "neon-dotprod": ("asimd", "asimddp"),
}
#: Those that add INT8 products without overflow. The others add pairs of uint8 x int8 products in 16 bits, which
#: saturate (VPMADDUBSW) unless one factor has half its range.
DOT_PRODUCT_ISAS = frozenset({"avx-vnni", "avx512-vnni", "amx", "neon-dotprod"})
#: Words of an artifact's `needs` that more than one CPU flag can satisfy.
INT8_DOT_PRODUCT, BF16 = "an INT8 dot product (VNNI, AMX or Arm's)", "bf16 arithmetic"


def native_isa(flags: Iterable[str] | None = None) -> str:
    """The largest instruction set of `ISA_FLAGS` that a CPU of these flags has; by default this CPU."""
    have = frozenset(cpu_flags() if flags is None else flags)
    return [isa for isa, needed in ISA_FLAGS.items() if have.issuperset(needed)][-1]


def range_is_reduced(isa: str, weight_bits: int) -> bool:
    """Whether weights of this width must keep to half their range, because INT8 products could overflow.

    Halving weights costs less than halving activations (figures at `pt2e._config`); 4-bit weights cannot overflow.
    """
    return weight_bits == 8 and isa not in DOT_PRODUCT_ISAS


def capabilities() -> frozenset[str]:
    """What this CPU has of all that an artifact may need: its flags, and the words above."""
    words = {INT8_DOT_PRODUCT: has_int8_dot_product(), BF16: has_native_bf16()}
    return cpu_flags() | {word for word, has in words.items() if has}


@dataclass(frozen=True)
class Machine:
    """What a run's outcome depends on of its machine, or of the least of a cluster's nodes.

    isa: one of `ISA_FLAGS`. bf16: whether the CPU computes in it. gpu: whether training gets one. gpu_name: which one
    it is (`host.gpu_name`), where that is known.
    """

    isa: str
    bf16: bool
    gpu: bool = False
    gpu_name: str | None = None


def least_of(nodes: Iterable[frozenset[str]], gpu: bool = False, gpu_name: str | None = None) -> Machine:
    """The machine that every node is at least, by their `capabilities`."""
    shared = frozenset.intersection(*nodes)
    return Machine(native_isa(shared), BF16 in shared, gpu, gpu_name)


def this_machine() -> Machine:
    """This machine."""
    return least_of([capabilities()], gpu := _has_gpu(), gpu_name() if gpu else None)


#: What a driver for torch's GPUs leaves on Linux: NVIDIA's, that of WSL, AMD's.
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def _has_gpu() -> bool:
    # Where there is none, which is soon told, a driver can do without torch.
    if sys.platform == "linux" and not any(map(os.path.exists, GPU_DEVICES)):
        return False
    import torch

    return torch.cuda.is_available()
