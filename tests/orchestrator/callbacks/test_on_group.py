"""Callbacks and loggers on a group: one set of files, one decision, and the driver's objects know all of
it."""

from __future__ import annotations

import csv
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from orchestrator.callbacks import EarlyStopping, ModelCheckpoint
from orchestrator.loggers import CSVLogger, TensorBoardLogger
from tests.orchestrator.groups import Net, group_trainer, loader

pytestmark = [pytest.mark.ray, pytest.mark.timeout(60)]


class Told(Net):
    """Validates to a given value each epoch; logs each rank's own loss at each step."""

    def __init__(self, values: tuple[float, ...] = (1.0,)) -> None:
        super().__init__()
        self.values = values

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("own_loss", loss.detach() + 100 * self.trainer.global_rank)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("v", self.values[min(self.current_epoch, len(self.values) - 1)])


def names(directory: str | Path | None) -> list[str]:
    """Return the names of the files in a directory."""
    return sorted(path.name for path in Path(str(directory)).iterdir())


def test_the_best_and_the_last_are_known_in_the_driver(tmp_path: Path) -> None:
    """Paths, scores and reasons that rank 0 found are in the driver's callbacks, and the files are there
    once."""
    checkpoint = ModelCheckpoint(monitor="v", save_top_k=2, save_last=True)
    stopping = EarlyStopping("v", patience=1)
    trainer = group_trainer(
        tmp_path,
        max_epochs=9,
        enable_checkpointing=True,
        callbacks=[checkpoint, stopping],
        logger=[CSVLogger(tmp_path), TensorBoardLogger(tmp_path, "board")],
        log_every_n_steps=1,
    )
    trainer.fit(Told((3, 1, 2)), loader(32), loader(16))
    assert trainer.current_epoch == 3
    assert stopping.stopped_epoch == 2
    assert checkpoint.best_model_score == 1
    assert checkpoint.dirpath == str(tmp_path / "lightning_logs" / "version_0" / "checkpoints")
    assert names(checkpoint.dirpath) == ["epoch=1-step=4.ckpt", "epoch=2-step=6.ckpt", "last.ckpt"]
    assert torch.load(checkpoint.last_model_path, weights_only=True)["global_step"] == 6
    with open(tmp_path / "lightning_logs" / "version_0" / "metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == [str(step) for step in range(6)]
    assert len([name for name in names(tmp_path / "board" / "version_0") if name.startswith("events")]) == 1


@pytest.mark.parametrize("trigger", [{"every_n_train_steps": 1}, {"train_time_interval": timedelta(0)}])
def test_saves_within_an_epoch_follow_rank_0(tmp_path: Path, trigger: dict[str, Any]) -> None:
    """Where ranks log different values, all save together, scored by rank 0's, also at a step without
    samples for one."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="own_loss", save_top_k=-1, **trigger)
    trainer = group_trainer(tmp_path, max_epochs=1, enable_checkpointing=True, callbacks=[checkpoint])
    trainer.fit(Told(), loader(33))
    assert trainer.global_step == 3
    assert names(tmp_path) == [f"epoch=0-step={step}.ckpt" for step in (1, 2, 3)]
    assert all(score < 50 for score in checkpoint.best_k_models.values())


def test_only_rank_0_writes_logs(tmp_path: Path) -> None:
    """Code that runs on every rank may use the logger's experiment; the run has one event file."""

    class Drawing(Told):
        def on_train_epoch_end(self) -> None:
            assert self.logger is not None
            self.logger.experiment.add_scalar("drawn", self.trainer.global_rank, self.current_epoch)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = group_trainer(tmp_path, max_epochs=1, logger=TensorBoardLogger(tmp_path))
    trainer.fit(Drawing(), loader(32))
    assert len(list(Path(str(trainer.log_dir)).glob("events.out*"))) == 1
    assert [event.value for event in EventAccumulator(str(trainer.log_dir)).Reload().Scalars("drawn")] == [0]


def test_a_failed_rank_is_not_saved_alone(tmp_path: Path) -> None:
    """save_on_exception on a group does not wait for ranks that will not come."""

    class Failing(Told):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.trainer.global_rank == 0 and self.trainer.global_step == 1:
                raise RuntimeError("boom")

    checkpoint = ModelCheckpoint(tmp_path, save_on_exception=True)
    trainer: pl.Trainer = group_trainer(tmp_path, enable_checkpointing=True, callbacks=[checkpoint])
    with pytest.raises(RuntimeError, match="boom"):
        trainer.fit(Failing(), loader(32))
    assert names(tmp_path) == []
