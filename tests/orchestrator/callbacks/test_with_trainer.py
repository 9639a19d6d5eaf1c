"""Callbacks, loggers and progress within a real Trainer, in this process."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader

import orchestrator as pl
from orchestrator.callbacks import Callback, EarlyStopping, ModelCheckpoint
from orchestrator.errors import MisconfigurationError
from orchestrator.loggers import CSVLogger, TensorBoardLogger


class Model(pl.LightningModule):
    """Four batches an epoch; logs the training loss, and in epoch e the e-th of the given values as ``v``."""

    def __init__(self, values: tuple[float, ...] = (1.0,), lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, 1)
        self.values = values

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.layer(batch).square().mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("v", self.values[min(self.current_epoch, len(self.values) - 1)], prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.ones(8, 2), batch_size=2)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.ones(4, 2), batch_size=2)  # type: ignore[arg-type]


def trainer(root: Path, *callbacks: Callback, **arguments: Any) -> pl.Trainer:
    """Return a silent trainer that writes below `root`."""
    given = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "max_epochs": 3}
    return pl.Trainer(default_root_dir=root, callbacks=list(callbacks), **{**given, **arguments})


def steps(directory: Path) -> dict[str, int]:
    """Return the step of each checkpoint in `directory`, by name."""
    return {
        path.name: int(torch.load(path, weights_only=True)["global_step"])
        for path in sorted(directory.glob("*.ckpt"))
    }


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    ("values", "arguments", "expected"),
    [
        ((3, 1, 2), {}, {"epoch=2-step=12.ckpt": 12}),
        ((3, 1, 2), {"monitor": "v"}, {"epoch=1-step=8.ckpt": 8}),
        ((1, 2, 3), {"monitor": "v", "save_last": True}, {"epoch=0-step=4.ckpt": 4, "last.ckpt": 12}),
        ((1, 2, 3), {"save_top_k": 0, "save_last": True}, {"last.ckpt": 12}),
        (
            (3, 2, 1),
            {"monitor": "v", "every_n_train_steps": 4, "save_top_k": -1},
            {"epoch=0-step=4.ckpt": 4, "epoch=1-step=8.ckpt": 8, "epoch=2-step=12.ckpt": 12},
        ),
        (
            (3, 2, 1),
            {"monitor": "loss", "every_n_train_steps": 5, "save_top_k": -1},
            {"epoch=1-step=5.ckpt": 5, "epoch=2-step=10.ckpt": 10},
        ),
        (
            (float("nan"), 2, 1),
            {"monitor": "v", "save_top_k": 2},
            {"epoch=1-step=8.ckpt": 8, "epoch=2-step=12.ckpt": 12},
        ),
    ],
)
def test_checkpoints_of_a_fit(
    tmp_path: Path, values: tuple[float, ...], arguments: dict[str, Any], expected: dict[str, int]
) -> None:
    """After a fit the directory holds the files that the arguments ask for, of the right steps."""
    trainer(tmp_path, ModelCheckpoint(tmp_path, **arguments)).fit(Model(values))
    assert steps(tmp_path) == expected


def test_validation_more_often_than_epochs(tmp_path: Path) -> None:
    """With two validations an epoch each of them ends with a save."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="v", save_top_k=-1)
    trainer(tmp_path, checkpoint, val_check_interval=0.5, max_epochs=2).fit(Model())
    assert set(steps(tmp_path).values()) == {2, 4, 6, 8}


def test_the_default_checkpoint_lies_in_the_version_directory(tmp_path: Path) -> None:
    """Without arguments a run has its version directory, with events, hyperparameters and the newest
    checkpoint."""
    run = pl.Trainer(default_root_dir=tmp_path, max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    run.fit(Model())
    version = tmp_path / "lightning_logs" / "version_0"
    assert run.log_dir == str(version)
    assert steps(version / "checkpoints") == {"epoch=0-step=4.ckpt": 4}
    assert yaml.safe_load((version / "hparams.yaml").read_text()) == {"values": [1.0], "lr": 0.1}
    assert len(list(version.glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize(
    "arguments", [{"save_last": True}, {"monitor": "v", "save_top_k": 2, "save_last": True}]
)
def test_a_resumed_run_leaves_the_same_checkpoints(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """Stopping after two of four epochs and going on leaves the files and the state of a run that never
    stopped."""
    values = (3.0, 1.0, 4.0, 2.0)
    whole = ModelCheckpoint(tmp_path / "whole", **arguments)
    trainer(tmp_path, whole, max_epochs=4).fit(Model(values))
    first, second = (ModelCheckpoint(tmp_path / "parts", **arguments) for _ in range(2))
    trainer(tmp_path, first, max_epochs=2).fit(Model(values))
    trainer(tmp_path, second, max_epochs=4).fit(Model(values), ckpt_path=first.last_model_path)
    assert steps(tmp_path / "parts").items() >= steps(tmp_path / "whole").items()
    assert Path(second.best_model_path).name == Path(whole.best_model_path).name
    assert second.best_model_score == whole.best_model_score
    assert Path(second.last_model_path).name == "last.ckpt"


def test_the_best_and_the_last_can_be_asked_for_by_name(tmp_path: Path) -> None:
    """ckpt_path="best" and "last" are this callback's files."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="v", save_last=True)
    run = trainer(tmp_path, checkpoint)
    run.fit(Model((2, 1, 3)))
    for name, epoch in (("best", 1), ("last", 2)):
        (metrics,) = run.validate(Model((2, 1, 3)), ckpt_path=name, verbose=False)
        assert metrics.keys() == {"v"}
        path = checkpoint.best_model_path if name == "best" else checkpoint.last_model_path
        assert torch.load(path, weights_only=True)["global_step"] == 4 * (epoch + 1)


def test_a_failure_is_saved(tmp_path: Path) -> None:
    """save_on_exception=True leaves the state of the last whole step, from which training can go on."""

    class Failing(Model):
        fails = True

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            if self.fails and self.trainer.global_step == 6:
                raise RuntimeError("boom")
            return super().training_step(batch, batch_idx)

    checkpoint = ModelCheckpoint(tmp_path, save_on_exception=True, every_n_epochs=10)
    with pytest.raises(RuntimeError, match="boom"):
        trainer(tmp_path, checkpoint).fit(Failing())
    assert steps(tmp_path) == {"epoch=1-step=6.ckpt": 6}
    model = Failing()
    model.fails = False
    run = trainer(tmp_path, max_epochs=2)
    run.fit(model, ckpt_path=str(tmp_path / "epoch=1-step=6.ckpt"))
    assert run.global_step == 8


def test_a_misspelt_monitor_is_an_error(tmp_path: Path) -> None:
    """After the first validation the error names the metrics that are there."""
    with pytest.raises(MisconfigurationError, match=r"'w'.*'loss', 'v'"):
        trainer(tmp_path, ModelCheckpoint(tmp_path, monitor="w")).fit(Model())


def test_a_trial_run_leaves_nothing(tmp_path: Path) -> None:
    """fast_dev_run writes no file at all, and stops for no metric."""
    callbacks = [ModelCheckpoint(monitor="v", save_last=True), EarlyStopping("v", patience=0)]
    trainer(tmp_path, *callbacks, fast_dev_run=True, logger=True).fit(Model((1, 2, 3)))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- stopping


def test_training_stops_early(tmp_path: Path) -> None:
    """A metric that gets worse ends training after the epochs that patience allows."""
    stopping = EarlyStopping("v", patience=2)
    run = trainer(tmp_path, stopping, max_epochs=10)
    run.fit(Model((2, 1, 3, 4, 5)))
    assert run.current_epoch == 4
    assert stopping.stopped_epoch == 3
    assert stopping.best_score == 1


def test_a_validation_in_mid_epoch_can_stop(tmp_path: Path) -> None:
    """With two validations an epoch training ends in the middle of one."""
    run = trainer(tmp_path, EarlyStopping("v", patience=1), max_epochs=10, val_check_interval=0.5)
    run.fit(Model((1, 1)))
    assert run.global_step == 4


# ---------------------------------------------------------------- loggers


def test_loggers_get_all_metrics(tmp_path: Path) -> None:
    """Both loggers hold the training loss of each step and the validation's value of each epoch."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    table, board = CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "tb")
    trainer(tmp_path, logger=[table, board], log_every_n_steps=1, max_epochs=2).fit(Model((2, 1)))
    with open(Path(table.log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(8))
    assert [row["v"] for row in rows if row["v"]] == ["2.0", "1.0"]
    events = EventAccumulator(board.log_dir).Reload()
    for name in ("loss", "v"):
        in_table = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert [(event.step, event.value) for event in events.Scalars(name)] == in_table


def test_the_module_can_write_to_the_experiment(tmp_path: Path) -> None:
    """self.logger.experiment is the library's own writer."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Drawing(Model):
        def on_train_epoch_end(self) -> None:
            assert isinstance(self.logger, TensorBoardLogger)
            self.logger.experiment.add_histogram("weights", self.layer.weight, self.current_epoch)

    run = trainer(tmp_path, logger=TensorBoardLogger(tmp_path), max_epochs=2)
    run.fit(Drawing())
    events = EventAccumulator(str(run.log_dir), size_guidance={"histograms": 0}).Reload()
    assert [event.step for event in events.Histograms("weights")] == [0, 1]
    assert "v" in events.Tags()["scalars"]


def test_a_second_fit_goes_on_in_the_same_version(tmp_path: Path) -> None:
    """One trainer keeps its version; another one gets the next."""
    for version, fits in ((0, 2), (1, 1)):
        run = trainer(tmp_path, logger=CSVLogger(tmp_path), max_epochs=1, enable_checkpointing=False)
        for _ in range(fits):
            run.fit(Model())
        assert run.logger is not None
        assert run.logger.version == version


# ---------------------------------------------------------------- progress


def test_each_epoch_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where standard error is no terminal there is one line an epoch, with the metrics of the progress
    bar."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    trainer(tmp_path, enable_progress_bar=True, max_epochs=2).fit(Model((2, 1)))
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("Epoch")]
    assert [line.split(" in ")[0] for line in lines] == ["Epoch 0/1: 4/4 batches", "Epoch 1/1: 4/4 batches"]
    assert "v 2" in lines[0]
    assert "v 1" in lines[1]
    assert all("loss " in line for line in lines)
