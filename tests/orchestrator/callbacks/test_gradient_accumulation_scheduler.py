"""GradientAccumulationScheduler: how many steps each epoch makes."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.callbacks import GradientAccumulationScheduler, LambdaCallback
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.tiny import Tiny, assert_equal_weights, loader, quiet_trainer


def test_epochs_accumulate_by_the_schedule() -> None:
    """The number holds from its epoch on, and windows are those of that number."""
    seen: list[Any] = []
    note = LambdaCallback(
        on_train_epoch_end=lambda trainer, module: seen.append(
            (trainer.accumulate_grad_batches, trainer.global_step)
        )
    )
    trainer = quiet_trainer(GradientAccumulationScheduler({1: 2, 3: 4}), note, max_epochs=4)
    trainer.fit(Tiny(), loader(24))
    assert seen == [(1, 6), (2, 9), (2, 12), (4, 14)]


def test_a_schedule_of_one_number_is_the_argument() -> None:
    """From epoch 0 on it trains the same weights as Trainer(accumulate_grad_batches=...)."""
    scheduled, given = Tiny(), Tiny()
    quiet_trainer(GradientAccumulationScheduler({0: 3}), max_epochs=2).fit(scheduled, loader(20))
    quiet_trainer(accumulate_grad_batches=3, max_epochs=2).fit(given, loader(20))
    assert_equal_weights(scheduled, given)


def test_the_schedule_can_be_asked() -> None:
    """It tells the number of each epoch, and whether it ever accumulates."""
    found = GradientAccumulationScheduler({2: 4, 5: 1})
    assert [found.get_accumulate_grad_batches(epoch) for epoch in (0, 2, 4, 5, 9)] == [1, 4, 4, 1, 1]
    assert found.going_to_accumulate_grad_batches()
    assert not GradientAccumulationScheduler({0: 1}).going_to_accumulate_grad_batches()


@pytest.mark.parametrize("scheduling", [{}, 3, {0: 0}, {-1: 2}, {"a": 1}, {0: 1.5}, {0: True}])
def test_bad_schedules_are_refused(scheduling: Any) -> None:
    """What is no schedule is an error that shows it."""
    with pytest.raises(MisconfigurationError, match=r"GradientAccumulationScheduler\(scheduling="):
        GradientAccumulationScheduler(scheduling)


def test_two_numbers_are_refused() -> None:
    """A Trainer that accumulates a number of its own contradicts the schedule."""
    trainer = quiet_trainer(GradientAccumulationScheduler({1: 2}), accumulate_grad_batches=3)
    with pytest.raises(MisconfigurationError, match=r"Trainer\(accumulate_grad_batches=3\)"):
        trainer.fit(Tiny(), loader(4))
