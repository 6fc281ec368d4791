"""The fit loop: learns, resumes bit for bit, ignores what has no weight, and stops when it makes no sense."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support.networks import TARGET_MEAN, TARGET_STD, TINY, realistic_model, smooth_clips, toy_batches
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from qray.errors import QrayError
from qray.model.epoch import EpochResult
from qray.model.regressor import VideoRegressor, build_regressor
from qray.model.training import FitSettings, TrainBatch, fit, load_checkpoint, resolve_precision
from qray.study import Augment, Model, Training

EPOCHS, STEPS = 3, 3
TRAINING = Training(epochs=EPOCHS, batch_size=8, lr=2e-3, augment=Augment())


def fresh_model() -> VideoRegressor:
    return build_regressor(TINY, TARGET_MEAN, TARGET_STD, seed=5).channels_last().train()


def settings(training: Training = TRAINING, **changes: object) -> FitSettings:
    return FitSettings(training, STEPS, TARGET_STD, seed=1, **changes)  # type: ignore[arg-type]


def stream(first_epoch: int = 0) -> Iterator[TrainBatch]:
    """The batches of all epochs from `first_epoch` on."""
    batches = list(toy_batches(EPOCHS * STEPS))
    return iter(batches[first_epoch * STEPS :])


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[VideoRegressor, list[EpochResult]]:
    model = fresh_model()
    return model, list(fit(model, stream(), settings()))


@pytest.mark.parametrize("done", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    uninterrupted: tuple[VideoRegressor, list[EpochResult]], done: int
) -> None:
    whole, results = uninterrupted
    model = fresh_model()
    list(fit(model, stream(done), settings(), resume=results[done - 1].checkpoint))
    assert same(model, whole)


def test_a_narrow_network_trained_again_is_the_same_bit_for_bit() -> None:
    def trained() -> VideoRegressor:
        # What is allocated beside a training must not be what it reads.
        clutter = [torch.full((size,), torch.inf) for size in torch.randint(1, 20_000, (50,)).tolist()]
        del clutter
        model = build_regressor(Model(width=4), TARGET_MEAN, TARGET_STD, seed=5).channels_last().train()
        list(fit(model, stream(), settings(TRAINING.model_copy(update={"epochs": 1}))))
        return model

    first = trained()
    assert all(same(first, trained()) for _ in range(2))


def test_a_resumed_run_reports_the_losses_of_an_uninterrupted_one(
    uninterrupted: tuple[VideoRegressor, list[EpochResult]],
) -> None:
    results = uninterrupted[1]
    resumed = fit(fresh_model(), stream(1), settings(), resume=results[0].checkpoint)
    assert [r.loss for r in resumed] == [r.loss for r in results[1:]]


def test_a_run_that_was_abandoned_between_epochs_leaves_a_checkpoint_to_go_on_from(
    uninterrupted: tuple[VideoRegressor, list[EpochResult]],
) -> None:
    abandoned = fit(fresh_model(), stream(), settings())
    checkpoint = next(abandoned).checkpoint
    abandoned.close()
    model = fresh_model()
    list(fit(model, stream(1), settings(), resume=checkpoint))
    assert same(model, uninterrupted[0])


def test_nothing_is_left_to_do_after_the_last_epoch(uninterrupted: tuple[VideoRegressor, list[EpochResult]]) -> None:
    assert list(fit(fresh_model(), iter(()), settings(), resume=uninterrupted[1][-1].checkpoint)) == []


def test_epochs_come_in_order_with_their_clips(uninterrupted: tuple[VideoRegressor, list[EpochResult]]) -> None:
    assert [(r.epoch, r.clips) for r in uninterrupted[1]] == [(0, 24), (1, 24), (2, 24)]


def test_a_checkpoint_holds_plain_tensors_and_containers(
    uninterrupted: tuple[VideoRegressor, list[EpochResult]],
) -> None:
    assert load_checkpoint(uninterrupted[1][0].checkpoint)["epoch"] == 0


class Pooled(nn.Module):
    """A model without batch-norm, whose clips cannot influence one another."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.head(clips.float().div(255).mean((1, 2, 3))).squeeze(1)


def one_batch(weights: list[float], targets: list[float], seed: int = 0) -> TrainBatch:
    return TrainBatch(smooth_clips(len(weights), seed=seed), torch.tensor(targets), torch.tensor(weights))


def step(batch: TrainBatch, **changes: object) -> tuple[Pooled, EpochResult]:
    """A model after one plain step on a batch."""
    training = Training.model_validate(
        {"epochs": 1, "optimizer": "adam", "lr": 0.1, "weight_decay": 0, "schedule": "constant", "augment": None}
        | changes
    )
    model = Pooled()
    return model, next(fit(model, iter([batch]), FitSettings(training, 1, 1.0, seed=0)))


def test_a_clip_of_weight_0_has_no_influence() -> None:
    ones = one_batch([1, 1, 0], [1.0, 2.0, 3.0])
    other = TrainBatch(ones.clips.clone(), torch.tensor([1.0, 2.0, -1e6]), ones.weights)
    other.clips[2] = 0
    assert same(step(ones)[0], step(other)[0])


def test_a_clip_of_weight_0_is_not_counted() -> None:
    assert step(one_batch([1, 1, 0], [1.0, 2.0, 3.0]))[1].clips == 2


def test_a_batch_of_failed_clips_trains_nothing() -> None:
    model, result = step(one_batch([0, 0], [1.0, 2.0]))
    assert (same(model, Pooled()), result.loss) == (True, 0)


def test_mse_is_the_mean_square() -> None:
    assert step(one_batch([1, 1], [1.0, 3.0]), loss="mse")[1].loss == pytest.approx(5)


def test_huber_is_linear_beyond_one_standard_deviation() -> None:
    assert step(one_batch([1, 1], [1.0, 3.0]), loss="huber")[1].loss == pytest.approx((0.5 + 2.5) / 2)


def test_the_loss_is_in_standard_deviations_of_the_target() -> None:
    training = Training(epochs=1, loss="mse", augment=None)
    result = next(fit(Pooled(), iter([one_batch([1, 1], [12.0, 36.0])]), FitSettings(training, 1, 12.0, seed=0)))
    assert result.loss == pytest.approx(5)


def gradient_norm(clip: float | None) -> float:
    """Norm of the gradient that the optimizer used in the last step."""
    training = Training(epochs=1, loss="mse", augment=None, clip_grad_norm=clip)
    model = Pooled()
    list(fit(model, iter([one_batch([1, 1], [100.0, 300.0])]), FitSettings(training, 1, 1.0, seed=0)))
    return float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())


def test_the_gradient_is_clipped_to_the_given_norm() -> None:
    assert gradient_norm(0.5) == pytest.approx(0.5, rel=1e-3)


def test_null_clips_no_gradient() -> None:
    assert gradient_norm(None) > 100


def learning_rates(training: Training) -> list[float]:
    """Learning rate of every step of the optimizer."""
    rates: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    handle = register_optimizer_step_pre_hook(note)
    list(fit(Pooled(), stream(), FitSettings(training, STEPS, TARGET_STD, seed=0)))
    handle.remove()
    return rates


def test_onecycle_rises_to_the_learning_rate_and_falls_to_nothing() -> None:
    rates = learning_rates(Training(epochs=EPOCHS, lr=1e-2, warmup=0.34, augment=None))
    assert rates[0] < 1e-3
    assert max(rates) == pytest.approx(1e-2, rel=0.1)
    assert rates[-1] < 1e-6


def test_a_constant_schedule_keeps_the_learning_rate() -> None:
    rates = learning_rates(Training(epochs=EPOCHS, lr=1e-2, schedule="constant", augment=None))
    assert rates == [1e-2] * EPOCHS * STEPS


def test_a_loss_that_is_no_number_ends_the_run_with_what_to_do() -> None:
    with pytest.raises(QrayError, match=r"loss became nan at epoch 1, step 1: lower training\.lr \(0\.1\)"):
        step(one_batch([1], [float("nan")]))


def test_an_infinite_loss_ends_the_run() -> None:
    with pytest.raises(QrayError, match="loss became inf"):
        step(one_batch([1], [float("inf")]), loss="mse")


def test_a_stream_that_ends_early_says_where() -> None:
    short = iter(list(toy_batches(STEPS + 1)))
    with pytest.raises(QrayError, match="ended at epoch 2, step 2"):
        list(fit(fresh_model(), short, settings()))


def test_it_hears_of_every_epoch_before_it_starts() -> None:
    heard: list[int] = []
    list(fit(Pooled(), stream(), settings(), on_epoch_start=heard.append))
    assert heard == [0, 1, 2]


def test_bf16_autocast_trains() -> None:
    training = TRAINING.model_copy(update={"epochs": 1})
    (result,) = fit(fresh_model(), stream(), settings(training, precision="bf16"))
    assert np.isfinite(result.loss)


def test_bf16_keeps_fp32_master_weights() -> None:
    model = fresh_model()
    next(fit(model, stream(), settings(precision="bf16")))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("asked", "native", "expected"), [
    ("auto", True, "bf16"), ("auto", False, "fp32"), ("bf16", False, "bf16"), ("fp32", True, "fp32"),
])  # fmt: skip
def test_auto_precision_follows_the_cpu(asked: str, native: bool, expected: str) -> None:
    training = Training.model_validate({"precision": asked})
    assert resolve_precision(training, "cpu", native) == expected


def test_a_toy_relation_is_learnt() -> None:
    """Brightness sets the target: 12 points of spread are to shrink to less than 5 in 40 steps."""
    model, steps = fresh_model(), 40
    training = Training(epochs=1, batch_size=8, lr=5e-3)
    list(fit(model, toy_batches(steps), FitSettings(training, steps, TARGET_STD, seed=0)))
    batch = next(toy_batches(1, batch=16, seed=9))
    with torch.no_grad():
        errors = model.eval()(batch.clips) - batch.targets
    assert float(errors.abs().mean()) < 5


def test_training_moves_every_parameter() -> None:
    before = {name: p.clone() for name, p in fresh_model().named_parameters()}
    model = fresh_model()
    next(fit(model, stream(), settings()))
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_evaluating_between_epochs_changes_nothing(uninterrupted: tuple[VideoRegressor, list[EpochResult]]) -> None:
    model = fresh_model()
    for _ in fit(model, stream(), settings()):
        realistic_model()(smooth_clips(2))
        torch.rand(3)
    assert same(model, uninterrupted[0])
