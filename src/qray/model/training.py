"""One fit loop, for FP32, for QAT and for the FP32 control: batches in, one result and one checkpoint per epoch out."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from qray.errors import Diverged, QrayError
from qray.malloc import memory_kept
from qray.model.epoch import Checkpoint, EpochResult
from qray.model.graph_network import Part, switch_training
from qray.model.share import ALONE, Share
from qray.study import Augment, Training


@dataclass(frozen=True)
class TrainBatch:
    """clips: uint8 (B, T, H, W, 3); targets: float32 (B,), target units; weights: float32 (B,), 0: clip is ignored."""

    clips: Tensor
    targets: Tensor
    weights: Tensor


@dataclass(frozen=True)
class FitSettings:
    """Everything `fit` depends on apart from the model and the batches."""

    training: Training
    steps_per_epoch: int
    target_std: float
    seed: int
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "cpu"


def resolve_precision(training: Training, device: str, native_cpu_bf16: bool) -> Literal["fp32", "bf16"]:
    """bf16 autocast where it pays: on GPUs and CPUs with bf16 arithmetic of their own."""
    if training.precision != "auto":
        return training.precision
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if native_cpu_bf16 else "fp32"


def augment_clips(clips: Tensor, config: Augment, draws: Tensor) -> Tensor:
    """Shift, contrast and brightness per clip, the same for all its frames. uint8 in, uint8 out, any device.

    draws: float32 (clips, 4), uniform in 0 to 1.
    """
    _, _, height, width, _ = clips.shape
    shifts = torch.round((draws[:, :2] * 2 - 1) * config.shift_px).long()
    gain = 1 + (draws[:, 2] * 2 - 1) * config.gain
    bias = (draws[:, 3] * 2 - 1) * config.bias * 255
    # Index arithmetic instead of a padded crop: clamped rows and columns repeat the border.
    rows = (torch.arange(height) - shifts[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width) - shifts[:, 1:]).clamp(0, width - 1)
    pixels = (rows[:, :, None] * width + columns[:, None]).flatten(1).to(clips.device)
    # One table of 256 entries per clip: contrast and brightness on uint8 without a float copy of the clip.
    levels = torch.arange(256, dtype=torch.float32)
    table = (levels * gain[:, None] + bias[:, None]).round().clamp(0, 255).to(torch.uint8).to(clips.device)
    moved = (clip.flatten(1, 2).index_select(1, p).flatten() for clip, p in zip(clips, pixels, strict=True))
    # Not table[clip]: that takes four times as long, since it makes int64 of the clip.
    return torch.stack([t.index_select(0, m.int()) for t, m in zip(table, moved, strict=True)]).view_as(clips)


def _loss(predicted: Tensor, batch: TrainBatch, weight: Tensor, config: Training, target_std: float) -> Tensor:
    """weight: that of the whole batch, of which this may be a part."""
    error = (predicted.float() - batch.targets) / target_std
    if config.loss == "huber":
        each = nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none")
    else:
        each = error.square()
    return (each * batch.weights).sum() / weight.clamp(min=1)


def _optimizer(model: nn.Module, config: Training) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    parameters = [p for p in model.parameters() if p.requires_grad]
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)


def _schedule(optimizer: torch.optim.Optimizer, config: Training, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    # Smith & Topin 2018, Super-Convergence; cosine annealing as in torch's own default.
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.lr, total_steps=max(steps, 2), pct_start=config.warmup
    )


def freeze_batch_norm(model: nn.Module) -> None:
    """Use and keep the running statistics from here on, until `train` is called."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
        elif isinstance(module, Part):
            switch_training(module.graph, False)


def graph_of(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint needs besides the weights of a network that was imported as a graph: {"program"}, its bytes."""
    program = getattr(model, "program", None)
    return {} if program is None else {"program": torch.frombuffer(bytearray(program), dtype=torch.uint8)}


def dump_checkpoint(state: dict[str, Any]) -> Checkpoint:
    """Serialise tensors, numbers and containers of them."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return np.frombuffer(buffer.getbuffer(), np.uint8)


def load_checkpoint(data: bytes | Checkpoint) -> dict[str, Any]:
    """Read a checkpoint without unpickling anything but tensors and plain containers."""
    return torch.load(io.BytesIO(data if isinstance(data, bytes) else data.data), map_location="cpu", weights_only=True)


def fit(
    model: nn.Module,
    batches: Iterator[TrainBatch],
    settings: FitSettings,
    resume: Checkpoint | None = None,
    on_epoch_start: Callable[[int], None] | None = None,
    on_step: Callable[[float, int], None] | None = None,
    share: Share = ALONE,
) -> Iterator[EpochResult]:
    """Train `model` in place, yielding after each epoch.

    `batches` begins at the first epoch that is still to do and holds `steps_per_epoch` batches for each. `model` is in
    training mode already (an exported QAT module switches in a way of its own). `on_epoch_start(epoch)` may freeze
    parts of it; `on_step(loss, clips)` hears of each step. With the same seed and batches, a run that goes on from
    a checkpoint equals one that was never interrupted.

    Of several workers each is given its `share` of every batch. Results are those of the whole model: loss and clips of
    all, and the first's hold the checkpoint, whose weights have the names of a model trained alone.

    Raises:
        Diverged: the loss is not finite. QrayError: the stream ended early.
    """
    config, device = settings.training, torch.device(settings.device)
    model = share.synchronized(model.to(device), device)
    # By default a GPU rounds what convolutions multiply to TF32, and what is called FP32 is.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    optimizer = _optimizer(model, config)
    schedule = _schedule(optimizer, config, config.epochs * settings.steps_per_epoch)
    first, so_far = 0, 0.0
    if resume is not None:
        state = load_checkpoint(resume)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first, so_far = int(state["epoch"]) + 1, float(state["seconds"])
    network = share.wrapped(model, device)
    with memory_kept():
        for epoch in range(first, config.epochs):
            started, total, clips = time.monotonic(), 0.0, 0
            generator = torch.Generator().manual_seed(hash((settings.seed, epoch)) % 2**63)
            if on_epoch_start:
                on_epoch_start(epoch)
            for step in range(settings.steps_per_epoch):
                batch = next(batches, None)
                if batch is None:
                    raise QrayError(f"the training stream ended at epoch {epoch + 1}, step {step + 1}; run it again")
                on_device = batch.clips.to(device, non_blocking=True)
                batch = TrainBatch(on_device, batch.targets.to(device), batch.weights.to(device))
                n_clips, weight = share.whole(batch.weights)
                inputs = on_device
                if config.augment:
                    inputs = augment_clips(on_device, config.augment, share.draws(n_clips, 4, generator))
                with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                    predicted = network(inputs)
                loss = _loss(predicted, batch, weight, config, settings.target_std)
                optimizer.zero_grad(set_to_none=True)
                # Gradients are averaged over workers, whose parts of the loss are to be added.
                (loss * share.workers).backward()  # type: ignore[no-untyped-call]
                if config.clip_grad_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
                optimizer.step()
                schedule.step()
                value = float(share.summed(loss.detach()))
                if value != value or value == float("inf"):
                    raise Diverged(
                        f"the loss became {value} at epoch {epoch + 1}, step {step + 1}: lower training.lr "
                        f"({config.lr:g}) or set training.clip_grad_norm"
                    )
                total += value
                clips += int(weight)
                if on_step:
                    on_step(value, n_clips)
            seconds = time.monotonic() - started
            so_far += seconds
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "epoch": epoch,
                "seconds": so_far,
                **graph_of(model),
            }
            checkpoint = dump_checkpoint(state) if share.rank == 0 else np.empty(0, np.uint8)
            yield EpochResult(epoch, total / settings.steps_per_epoch, seconds, so_far, clips, checkpoint)
