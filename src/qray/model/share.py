"""What a fit does together with others that train the same model; by PyTorch's process group, without Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Share:
    """The part of worker `rank` of so many `workers`, who form the process group of their processes; by default of one
    that trains alone, and shares nothing.

    Each worker has every `workers`-th clip of a batch, and all of them do the same steps. Every method is to be called
    by all of them.
    """

    rank: int = 0
    workers: int = 1

    def synchronized(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model, whose batch-norms take the statistics of the whole batch where PyTorch has that: on GPUs, and for
        modules (not in exported graphs). Parameters and names stay what they are."""
        if self.workers == 1 or device.type != "cuda":
            return model
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]

    def wrapped(self, model: nn.Module, device: torch.device) -> nn.Module:
        """What to call instead of the model: it averages gradients over the workers, and gives all of them the buffers
        of the first."""
        if self.workers == 1:
            return model
        return DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None,
            # Some networks have weights that no output depends on; these are always the same.
            static_graph=True,
        )  # fmt: skip

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all workers, in place."""
        if self.workers > 1:
            dist.all_reduce(values)
        return values

    def whole(self, weights: Tensor) -> tuple[int, Tensor]:
        """The number of clips, and the sum of their weights, of the batch of which this worker has those `weights`."""
        if self.workers == 1:
            return len(weights), weights.sum()
        both = self.summed(torch.stack([weights.new_tensor(len(weights)), weights.sum()]))
        return int(both[0]), both[1]

    def draws(self, n_clips: int, columns: int, generator: torch.Generator) -> Tensor:
        """float32 (clips of this worker, columns), uniform in 0 to 1: its part of those of a whole batch."""
        return torch.rand((n_clips, columns), generator=generator)[self.rank :: self.workers]

    def merged(self, found: dict[Any, Any]) -> dict[Any, Any]:
        """What all workers have found."""
        if self.workers == 1:
            return found
        each: list[Any] = [None] * self.workers
        dist.all_gather_object(each, found)
        return {key: value for one in each for key, value in one.items()}


#: Of a training by one.
ALONE = Share()
