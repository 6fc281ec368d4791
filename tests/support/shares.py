"""A fit by one of two workers, on its clips of batches that the other has the rest of; in either process."""

from __future__ import annotations

import torch
from support.networks import TARGET_MEAN, TARGET_STD, TINY, smooth_clips
from torch import Tensor, nn

from qray.model.epoch import EpochResult
from qray.model.regressor import build_regressor
from qray.model.share import ALONE, Share
from qray.model.training import FitSettings, TrainBatch, fit, freeze_batch_norm
from qray.study import Augment, Training

#: A batch that two workers do not divide, in which one clip has no weight, and others.
WEIGHTS = ((1.0, 1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0, 1.0), (0.0, 1.0, 0.0, 1.0, 1.0))
EPOCHS = 2
TRAINING = Training(epochs=EPOCHS, batch_size=5, lr=2e-3, augment=Augment(), clip_grad_norm=0.5)


class Idle(nn.Module):
    """A model without batch-norm; some of its weights have no part in what it gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head, self.idle = nn.Linear(3, 16), nn.Linear(16, 1), nn.Linear(16, 16)

    def forward(self, clips: Tensor) -> Tensor:
        """uint8 (B, T, H, W, 3) -> (B,)."""
        return self.head(torch.relu(self.body(clips.float().div(255).mean((1, 2, 3))))).squeeze(1) * 12 + 55


def model_of(kind: str) -> nn.Module:
    """ "idle", or a network with batch-norm."""
    return Idle() if kind == "idle" else build_regressor(TINY, TARGET_MEAN, TARGET_STD, seed=5).channels_last().train()


def batches(share: Share, first: int = 0) -> list[TrainBatch]:
    """Of each batch from a step on, the clips of a worker."""
    found = []
    for step in range(EPOCHS * len(WEIGHTS)):
        weights = torch.tensor(WEIGHTS[step % len(WEIGHTS)])
        clips, targets = smooth_clips(5, seed=step), torch.linspace(30, 80, 5)
        found.append(TrainBatch(*(part[share.rank :: share.workers].clone() for part in (clips, targets, weights))))
    return found[first:]


def fitted(rank: int | None, kind: str, resume: bytes | None = None) -> tuple[dict[str, Tensor], list[EpochResult]]:
    """Weights and epochs of a fit, alone or as one of two. Batch-norm keeps its statistics, which depend on
    the rest of a batch, in "frozen"."""
    share = ALONE if rank is None else Share(rank, 2)
    model, first = model_of(kind), 0 if resume is None else len(WEIGHTS)
    settings = FitSettings(TRAINING, len(WEIGHTS), TARGET_STD, seed=1)

    def freeze(epoch: int) -> None:
        if kind == "frozen":
            freeze_batch_norm(model)

    results = list(fit(model, iter(batches(share, first)), settings, resume, freeze, share=share))
    return model.state_dict(), results


def merged(rank: int) -> dict[int, str]:
    """What both have found."""
    return Share(rank, 2).merged({rank: f"found by {rank}"})
