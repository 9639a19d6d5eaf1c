"""Arguments of the Trainer that are set after it was made, as scripts for Lightning set them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.adjusting import Adjustable, Setting
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as points_loader
from tests.orchestrator.tiny import Tiny, Validated, loader, quiet_trainer


class Sets(pl.Callback):
    """Sets an argument when an epoch begins.

    Args:
        epoch: When.
        name: Of the argument.
        value: Of the argument.
    """

    def __init__(self, epoch: int, name: str, value: Any) -> None:
        self.epoch, self.name, self.value = epoch, name, value

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            setattr(trainer, self.name, self.value)


def test_a_raised_limit_trains_on() -> None:
    """A second fit trains what a raised limit leaves, of epochs and of steps, by either name."""
    module, data, trainer = Tiny(), loader(12), quiet_trainer(max_epochs=1)
    trainer.fit(module, data)
    trainer.max_epochs = 3
    trainer.fit(module, data)
    assert (trainer.current_epoch, trainer.global_step) == (3, 9)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, data)
    assert (trainer.max_epochs, trainer.current_epoch) == (4, 4)
    trainer.fit_loop.max_epochs = -1
    trainer.fit_loop.epoch_loop.max_steps = 14
    trainer.fit(module, data)
    assert (trainer.max_steps, trainer.global_step) == (14, 14)


def test_what_is_set_holds_for_the_next_call() -> None:
    """Limits, intervals and clipping that are set between calls are those of the next one."""

    class Counts(Validated):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen.append("v")

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen.append("t")
            return super().training_step(batch, batch_idx)

    module, data, trainer = Counts(), loader(16), quiet_trainer()
    trainer.fit(module, data, data)
    assert "".join(module.seen) == "ttttvvvv"
    trainer.max_epochs, trainer.limit_val_batches, trainer.val_check_interval = 2, 1, 2
    trainer.fit(module, data, data)
    assert "".join(module.seen[8:]) == "ttvttv"
    trainer.limit_test_batches = 0.5
    trainer.test(module, data, verbose=False)
    assert trainer.num_test_batches == [2]
    assert trainer.limit_train_batches == 1.0  # as Lightning shows what was left out


def test_a_hook_may_change_the_length_of_its_own_fit() -> None:
    """Set while training runs, limits of epochs and steps count from the next epoch on."""
    trainer = quiet_trainer(Sets(1, "max_epochs", 2), max_epochs=9)
    trainer.fit(Tiny(), loader(12))
    assert trainer.current_epoch == 2
    trainer = quiet_trainer(Sets(0, "max_steps", 5), max_epochs=9)
    trainer.fit(Tiny(), loader(12))
    assert trainer.global_step == 5


def test_what_is_set_is_checked_like_an_argument() -> None:
    """A value that cannot be is refused as it was written, and nothing is changed."""
    trainer = quiet_trainer(max_epochs=2)
    for name, value in [
        ("max_epochs", -2),
        ("max_epochs", "3"),
        ("min_steps", 1.5),
        ("max_steps", None),
        ("limit_val_batches", 1.5),
        ("val_check_interval", 0),
        ("log_every_n_steps", -1),
        ("gradient_clip_val", "a"),
        ("gradient_clip_algorithm", "nrom"),
    ]:
        with pytest.raises(MisconfigurationError, match=rf"^trainer\.{name} = {value!r}"):
            setattr(trainer, name, value)
    with pytest.raises(MisconfigurationError, match="check_val_every_n_epoch=None"):
        trainer.check_val_every_n_epoch = None
    with pytest.raises(AttributeError, match="max_epochs, min_epochs, max_steps, min_steps"):
        trainer.fit_loop.restarting = True
    with pytest.raises(AttributeError, match=r"fit_loop\.epoch_progress"):
        _ = trainer.fit_loop.epoch_progress
    assert (trainer.max_epochs, trainer.check_val_every_n_epoch) == (2, 1)


def test_every_form_of_the_constructor_can_be_set() -> None:
    """None is the default, and lengths of time are read in all their forms."""
    trainer = quiet_trainer(log_every_n_steps=3)
    trainer.log_every_n_steps = None  # type: ignore[assignment]
    trainer.val_check_interval = "00:00:01:00"  # type: ignore[assignment]
    assert trainer.log_every_n_steps == 50
    assert trainer.val_check_interval == timedelta(minutes=1)


def test_every_adjustable_argument_is_documented() -> None:
    """The class that lists them has a line for each."""
    names = [name for name, item in vars(Adjustable).items() if isinstance(item, Setting)]
    assert len(names) == 15
    assert [name for name in names if f"        {name}: " not in (Adjustable.__doc__ or "")] == []


@pytest.mark.ray
def test_on_a_group_workers_and_driver_agree(tmp_path: Path) -> None:
    """What the script sets reaches the workers, and what their hooks set comes back."""
    trainer = group_trainer(tmp_path, max_epochs=1, callbacks=[Sets(1, "max_epochs", 2)])
    module = Net()
    trainer.fit(module, points_loader(32))
    trainer.fit_loop.max_epochs = 5
    trainer.fit(module, points_loader(32))
    assert (trainer.current_epoch, trainer.max_epochs) == (2, 2)
