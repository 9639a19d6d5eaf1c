"""When training steps, logs, validates and stops, where Lightning's users rely on details."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

import orchestrator as pl
from orchestrator.callbacks import EarlyStopping
from orchestrator.errors import MisconfigurationError
from orchestrator.loggers.logger import Logger
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as points_loader
from tests.orchestrator.tiny import Tiny, Validated, loader, quiet_trainer


class Memory(Logger):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.lines: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.lines.append((step, dict(metrics)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


class Counts(Validated):
    """Logs the number of the batch, as a value of the step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("batch", float(batch_idx))
        return super().training_step(batch, batch_idx)


class Stops(pl.Callback):
    """Asks to stop in one hook, at the n-th batch.

    Args:
        hook: Where.
        batch: At which batch.
    """

    def __init__(self, hook: str, batch: int = 0) -> None:
        self.hook, self.batch = hook, batch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.should_stop or self.hook == "on_train_epoch_start"

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.hook == "on_train_batch_end" and batch_idx == self.batch:
            trainer.should_stop = True


def test_the_first_of_fifty_steps_is_logged_at_step_49() -> None:
    """With the default of 50 the first log point is behind the 50th step, whose number is 49."""
    memory = Memory()
    quiet_trainer(logger=memory).fit(Counts(), loader(4 * 60))
    assert [(step, line["batch"]) for step, line in memory.lines] == [(49, 49.0)]


def test_the_last_step_before_a_stop_is_logged() -> None:
    """Where a batch's hook asks to stop, its step is a log point whatever log_every_n_steps is."""
    memory = Memory()
    quiet_trainer(Stops("on_train_batch_end", 2), logger=memory).fit(Counts(), loader(40))
    assert [(step, line["batch"]) for step, line in memory.lines] == [(2, 2.0)]


def test_batches_of_an_evaluation_carry_no_epoch() -> None:
    """Values of single validation batches go out by their own number, those of the whole with the epoch."""

    class Both(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("x", 1.0, on_step=True, on_epoch=True)

    memory = Memory()
    quiet_trainer(logger=memory).fit(Both(), loader(8), loader(8))
    assert memory.lines == [(0, {"x_step": 1.0}), (1, {"x_step": 1.0}), (1, {"x_epoch": 1.0, "epoch": 0})]


def test_a_wish_to_stop_at_an_epochs_start_runs_no_batch() -> None:
    """The epoch's hooks run, but no batch; with min_epochs it runs whole."""
    trainer = quiet_trainer(Stops("on_train_epoch_start"), max_epochs=3)
    trainer.fit(Tiny(), loader(8))
    assert (trainer.global_step, trainer.current_epoch) == (0, 1)
    trainer = quiet_trainer(Stops("on_train_epoch_start"), max_epochs=3, min_epochs=1)
    trainer.fit(Tiny(), loader(8))
    assert (trainer.global_step, trainer.current_epoch) == (2, 1)


def test_least_steps_make_a_whole_epoch_the_least() -> None:
    """min_steps alone sets min_epochs to 1, so that nobody stops within the first epoch; given, it stays."""
    trainer = quiet_trainer(Stops("on_train_batch_end", 1), max_epochs=3, min_steps=2)
    assert trainer.min_epochs == 1
    trainer.fit(Tiny(), loader(20))
    assert (trainer.global_step, trainer.current_epoch) == (5, 1)
    trainer = quiet_trainer(Stops("on_train_batch_end", 1), max_epochs=3, min_steps=2, min_epochs=0)
    trainer.fit(Tiny(), loader(20))
    assert trainer.global_step == 2


def test_an_impossible_interval_is_refused_before_training() -> None:
    """val_check_interval beyond the epoch is an error before on_train_start."""
    started: list[str] = []

    class Starts(Validated):
        def on_train_start(self) -> None:
            started.append("training")

    with pytest.raises(MisconfigurationError, match="val_check_interval"):
        quiet_trainer(val_check_interval=5).fit(Starts(), loader(8), loader(8))
    assert started == []


def test_validation_after_every_batch_is_checked_after_every_batch() -> None:
    """val_check_interval=1 counts batches, so EarlyStopping looks at each validation, not at epochs' ends."""
    stopper = EarlyStopping("val_loss", mode="max", patience=1)
    trainer = quiet_trainer(stopper, val_check_interval=1, max_epochs=5)
    trainer.fit(Validated(), loader(40), loader(8))
    assert 0 < trainer.global_step < 10


class Plateaus(Tiny):
    """Watches the loss of steps, which is constant, with the patience of no step.

    Args:
        frequency: Of the scheduler, in steps.
    """

    def __init__(self, frequency: int) -> None:
        super().__init__()
        self.frequency = frequency
        self.rates: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        self.log("loss", 1.0)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        plateau = ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        config = {"scheduler": plateau, "monitor": "loss", "interval": "step", "frequency": self.frequency}
        return {"optimizer": optimizer, "lr_scheduler": config}


def test_a_plateau_may_watch_the_steps_of_training() -> None:
    """With interval "step" and a metric of training it steps every so many optimizer steps."""
    module = Plateaus(2)
    quiet_trainer().fit(module, loader(32))
    assert module.rates == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    module = Plateaus(1)
    quiet_trainer(accumulate_grad_batches=2).fit(module, loader(32))
    assert module.rates == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


class Differs(Net):
    """Watches a loss that each rank logs for itself, and that falls on rank 0 alone."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("own", float(batch_idx if self.trainer.global_rank else -batch_idx))
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        plateau = ReduceLROnPlateau(optimizer, patience=0, factor=0.1)
        config = {"scheduler": plateau, "monitor": "own", "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def on_train_end(self) -> None:
        rates = self.all_gather(torch.tensor(self.optimizers().param_groups[0]["lr"]))
        self.found = [round(float(rate), 6) for rate in rates]


@pytest.mark.ray
def test_on_a_group_all_ranks_step_a_plateau_alike(tmp_path: Path) -> None:
    """Where ranks log different values for themselves, rank 0's decides the rate of all."""
    module = Differs()
    group_trainer(tmp_path, max_epochs=1).fit(module, points_loader(64))
    assert module.found == [0.5, 0.5]
