"""Loggers that users write: what they must have, and what the trainer calls of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.loggers.logger import rank_zero_experiment
from tests.orchestrator.groups import Net, group_trainer, loader
from tests.orchestrator.loggers.offline import Fails
from tests.orchestrator.tiny import quiet_trainer


class Noted(pl.loggers.Logger):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    @property
    def name(self) -> str:
        return "noted"

    @property
    def version(self) -> str:
        return "0.1"

    @property
    @rank_zero_experiment
    def experiment(self) -> list[Any]:
        return self.told

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.told.append(("metrics", sorted(metrics), step))

    def log_hyperparams(self, params: Any) -> None:  # type: ignore[override]  # as users write it
        self.told.append(("hyperparams", dict(params)))

    def finalize(self, status: str) -> None:
        self.told.append(("finalize", status))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self.told.append(("saved", Path(checkpoint_callback.best_model_path).name))


class UsesExperiment(Net):
    """Records something of its own, on every rank."""

    def on_train_start(self) -> None:
        self.logger.experiment.append(("own", type(self.logger).__name__, self.global_rank))


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.ray)])
def test_a_logger_of_ones_own_is_told_everything(devices: int, tmp_path: Path) -> None:
    """It gets hyperparameters, metrics with their step, checkpoints and the end; on a group only rank 0's is
    real, and what it holds comes back.
    """
    logger = Noted()
    arguments: dict[str, Any] = {
        "logger": logger,
        "callbacks": [pl.callbacks.ModelCheckpoint(tmp_path)],
        "enable_checkpointing": True,
        "max_epochs": 1,
    }
    if devices == 1:
        arguments["default_root_dir"] = tmp_path
        trainer = quiet_trainer(*arguments.pop("callbacks"), **arguments)
    else:
        trainer = group_trainer(tmp_path, devices, **arguments)
    trainer.fit(UsesExperiment(width=4), loader(16))
    steps = 2 // devices
    assert logger.told == [
        ("hyperparams", {"features": 8, "width": 4}),
        ("own", "Noted", 0),
        ("saved", f"epoch=0-step={steps}.ckpt"),
        ("metrics", ["epoch", "train_loss"], steps - 1),
        ("finalize", "success"),
    ]


def test_a_failure_is_told(tmp_path: Path) -> None:
    """After an exception the logger is ended with "failed"."""
    logger = Noted()
    with pytest.raises(RuntimeError, match="enough"):
        quiet_trainer(Fails(), logger=logger).fit(Net(), loader(8))
    assert logger.told[-1] == ("finalize", "failed")


@pytest.mark.ray
def test_a_failure_on_a_group_is_told_in_the_driver(tmp_path: Path) -> None:
    """When workers fail, the driver's own logger is ended with "failed" too."""
    logger = Noted()
    with pytest.raises(RuntimeError, match="enough"):
        group_trainer(tmp_path, 2, logger=logger, callbacks=[Fails()]).fit(Net(), loader(16))
    assert logger.told[-1] == ("finalize", "failed")
