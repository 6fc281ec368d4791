"""Energy that a machine says it has used, where it says so: RAPL for the packages of a CPU, NVML for an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qray.point import CPU

#: Where Linux has RAPL's zones (https://docs.kernel.org/power/powercap/powercap.html); since 5.10 only root reads them.
POWERCAP = Path("/sys/class/powercap")
#: Packages of a CPU; zones within one have a second number, and are part of it. AMD's bear Intel's name too.
PACKAGES = "intel-rapl:[0-9]*"


@dataclass(frozen=True)
class Rapl:
    """The counters of all packages: of everything on them, whatever used it, and idle too."""

    packages: tuple[Path, ...]
    #: Microjoules at which each counter begins anew.
    ranges: tuple[int, ...]

    def read(self) -> tuple[int, ...]:
        """Microjoules of each package since any moment."""
        return tuple(int((package / "energy_uj").read_text(encoding="ascii")) for package in self.packages)

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Between two readings, less than one round of a counter apart: half an hour or more."""
        each = zip(before, after, self.ranges, strict=True)
        return sum((last - first) % around for first, last, around in each) / 1e6


@dataclass(frozen=True)
class Nvml:
    """The counter of one GPU, its memory included (Volta and younger)."""

    library: Any
    handle: Any

    def read(self) -> tuple[int, ...]:
        """Millijoules since the driver was loaded."""
        return (int(self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle)),)

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Between two readings."""
        return (after[0] - before[0]) / 1e3


def meter_of(device: str) -> Rapl | Nvml | None:
    """The meter of the CPU or GPU ("cuda") that work runs on; None where the machine does not tell."""
    return _rapl() if device == CPU else _nvml()


def _rapl() -> Rapl | None:
    try:
        packages = tuple(path for path in sorted(POWERCAP.glob(PACKAGES)) if path.name.count(":") == 1)
        ranges = tuple(int((path / "max_energy_range_uj").read_text(encoding="ascii")) for path in packages)
        found = Rapl(packages, ranges)
        return found if packages and found.read() else None
    except (OSError, ValueError):
        return None


def _nvml() -> Nvml | None:
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        # NVML counts GPUs otherwise than CUDA_VISIBLE_DEVICES does.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        found = Nvml(pynvml, handle)
        return found if found.read() else None
    except Exception:
        # No package, no GPU, or one that does not count: each has an error of its own.
        return None
