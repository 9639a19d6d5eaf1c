"""What the tests of the command line train: a module and data small enough to be read at a glance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from orchestrator.cli import LRSchedulerCallable, OptimizerCallable


class Net(pl.LightningModule):
    """One linear layer."""

    def __init__(self, width: int = 2, name: str = "net") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.width, self.name = width, name
        self.layer = nn.Linear(4, width)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch[0]).square().mean())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.layer(batch[0]).square().mean())

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        out: Tensor = self.layer(batch[0])
        return out

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Bare(Net):
    """Without an optimizer of its own."""

    configure_optimizers = pl.LightningModule.configure_optimizers  # type: ignore[assignment]


class WithCallables(Net):
    """Gets its optimizer and scheduler as arguments."""

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.SGD,
        scheduler: LRSchedulerCallable = torch.optim.lr_scheduler.ConstantLR,
    ) -> None:
        super().__init__()
        self.optimizer, self.scheduler = optimizer, scheduler

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        return [optimizer], [self.scheduler(optimizer)]


class Data(pl.LightningDataModule):
    """The same rows for everything."""

    def __init__(self, batch_size: int = 4, rows: int = 16) -> None:
        super().__init__()
        self.batch_size, self.rows = batch_size, rows

    def loader(self) -> DataLoader[Any]:
        rows = torch.arange(4.0 * self.rows).view(self.rows, 4) / 64
        return DataLoader(TensorDataset(rows), batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.logger=false",
]
