"""How many batches make one step may change from epoch to epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as points_loader
from tests.orchestrator.test_exact import plain_loop
from tests.orchestrator.tiny import Tiny, assert_equal_weights, loader, loss_of, network, quiet_trainer


class Schedules(pl.Callback):
    """Sets how many batches make one step when an epoch begins.

    Args:
        scheduling: From which epoch on how many.
    """

    def __init__(self, scheduling: dict[int, int]) -> None:
        self.scheduling = {0: 1, **scheduling}

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        reached = max(epoch for epoch in self.scheduling if epoch <= trainer.current_epoch)
        trainer.accumulate_grad_batches = self.scheduling[reached]


class Saves(Schedules):
    """Saves after each batch too."""

    def __init__(self, folder: Path) -> None:
        super().__init__({1: 2, 2: 3})
        self.folder = folder

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}-{batch_idx}.ckpt")


def adam(parameters: Any) -> torch.optim.Optimizer:
    """An optimizer that shows how often it stepped."""
    return torch.optim.Adam(parameters, lr=0.01)


def test_an_epoch_accumulates_what_was_set_at_its_start() -> None:
    """The loop reads the number again for each epoch, windows and divisors follow, and estimates know."""
    module, net, data = Tiny(adam), network(), loader(38)
    optimizer = adam(net.parameters())
    for size in (1, 1, 4):
        batches = list(data)
        for start in range(0, len(batches), size):
            window = batches[start : start + size]
            for batch in window:
                loss = loss_of(net, batch)
                (loss / len(window) if len(window) > 1 else loss).backward()
            optimizer.step()
            optimizer.zero_grad()
    estimates: list[Any] = []

    class Estimates(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            estimates.append(trainer.estimated_stepping_batches)

    trainer = quiet_trainer(Schedules({2: 4}), Estimates(), max_epochs=3)
    trainer.fit(module, data)
    assert_equal_weights(module.net, net)
    assert estimates == [trainer.global_step] == [23]
    assert trainer.accumulate_grad_batches == 4


def test_it_may_be_set_before_fit() -> None:
    """Set on the trainer, the number holds for the fits that follow."""
    module, net, data = Tiny(adam), network(), loader(38)
    plain_loop(net, adam(net.parameters()), data, accumulate=3)
    trainer = quiet_trainer(max_epochs=2)
    trainer.accumulate_grad_batches = 3
    trainer.fit(module, data)
    assert_equal_weights(module.net, net)


def test_going_on_in_mid_epoch_keeps_the_number(tmp_path: Path) -> None:
    """A checkpoint inside an epoch knows what was set for it, also in the middle of a window."""
    whole = Tiny(adam)
    quiet_trainer(Saves(tmp_path), max_epochs=3).fit(whole, loader(20))
    for path in ("0-2", "1-0", "1-3", "2-1", "2-4"):
        resumed, trainer = Tiny(adam), quiet_trainer(Schedules({1: 2, 2: 3}), max_epochs=3)
        trainer.fit(resumed, loader(20), ckpt_path=tmp_path / f"{path}.ckpt")
        assert_equal_weights(resumed, whole)
        assert trainer.global_step == 5 + 3 + 2


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", None])
def test_what_is_no_number_of_batches_is_refused(value: Any) -> None:
    """Only whole numbers of at least 1 can be set."""
    with pytest.raises(MisconfigurationError, match=r"trainer\.accumulate_grad_batches = .*at least 1"):
        quiet_trainer().accumulate_grad_batches = value


def test_where_steps_are_not_made_of_batches_it_is_refused() -> None:
    """Setting it in manual optimization, or with an optimizer that runs the forward pass itself, says why."""

    class Manual(Tiny):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("training began")

    with pytest.raises(MisconfigurationError, match=r"accumulate_grad_batches = 2 and .*Manual\.automatic"):
        quiet_trainer(Schedules({0: 2})).fit(Manual(), loader(8))
    with pytest.raises(MisconfigurationError, match="accumulate_grad_batches = 2 and LBFGS"):
        quiet_trainer(Schedules({0: 2})).fit(Tiny(torch.optim.LBFGS), loader(8))


@pytest.mark.ray
def test_on_a_group_the_driver_learns_what_was_set(tmp_path: Path) -> None:
    """Ranks follow the number alike, and afterwards the driver's trainer has it, as after a fit here."""
    trainer = group_trainer(tmp_path, max_epochs=3, callbacks=[Schedules({1: 2, 2: 3})])
    trainer.fit(Net(), points_loader(40, 4))
    assert trainer.global_step == 5 + 3 + 2
    assert trainer.accumulate_grad_batches == 3
