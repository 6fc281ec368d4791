"""Where something is measured: only what was measured at equal points is ever compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

CPU, CUDA = "cpu", "cuda"


@dataclass(frozen=True, order=True, kw_only=True)
class Point:
    """A device ("cpu", "cuda"), the CPU threads, and the clips per call of a measurement."""

    device: str = CPU
    threads: int
    batch: int

    def __str__(self) -> str:
        """In words; the CPU goes without saying."""
        device = "" if self.device == CPU else f"{self.device}, "
        return f"{device}{self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}"

    def depends(self) -> dict[str, Any]:
        """What a unit's key hashes of it: `device` only where it is no CPU, whose keys are older than the word."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("device", CPU)}
