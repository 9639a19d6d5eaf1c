"""Find good settings for a reader of handwritten digits, stop the bad trials early, and test the winner.

    python examples/sweep.py               # 12 trials, two at a time, under a minute
    python examples/sweep.py --trials 24   # again with more: the 12 are there already, 12 are added

The data are the 1,797 images of 8x8 pixels that come with scikit-learn. They are kept once on each node, and
all trials read the same memory. The page about the sweep is ``runs/sweep/digits/report.html``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl


class Digits(pl.LightningDataModule):
    """1,257 images to train, 270 to compare trials, 270 that only the winner sees."""

    def __init__(self) -> None:
        super().__init__()
        pixels, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(7))
        self.table = pl.SharedTable(
            {
                "pixels": torch.tensor(pixels / 16, dtype=torch.float32)[order],
                "label": torch.tensor(labels)[order],
            }
        )

    def read(self, rows: slice) -> TensorDataset:
        """Some of the rows: pixels (n, 64) and labels (n)."""
        columns = self.table.columns
        return TensorDataset(columns["pixels"][rows].clone(), columns["label"][rows].clone())

    def train_dataloader(self) -> DataLoader[Any]:
        """32 images a batch, in another order each epoch."""
        return DataLoader(self.read(slice(1257)), batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """What trials are compared by."""
        return DataLoader(self.read(slice(1257, 1527)), batch_size=270)

    def test_dataloader(self) -> DataLoader[Any]:
        """What nothing has seen before."""
        return DataLoader(self.read(slice(1527, None)), batch_size=270)


class Classifier(pl.LightningModule):
    """One hidden layer with dropout."""

    def __init__(self, width: int, learning_rate: float, dropout: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.network = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 10)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        pixels, labels = batch
        return nn.functional.cross_entropy(self.network(pixels), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """What the sweep compares."""
        self.log("val_loss", nn.functional.cross_entropy(self.network(batch[0]), batch[1]))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The share of images that the winner reads correctly."""
        self.log("test_acc", (self.network(batch[0]).argmax(dim=1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with the learning rate that the sweep looks for."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def main() -> None:
    """Search, then test the best trial's module."""
    parser = argparse.ArgumentParser(description="Find good settings for a reader of handwritten digits.")
    parser.add_argument("--trials", type=int, default=12, help="settings to try")
    parser.add_argument("--max-epochs", type=int, default=9, help="epochs of a trial that is not stopped")
    parser.add_argument("--at-once", type=int, default=2, help="trials at the same time")
    parser.add_argument("--root-dir", type=Path, default=Path("runs/sweep"), help="where all files go")
    args = parser.parse_args()
    data = Digits()
    space = {
        "width": tune.choice([16, 32, 64, 128]),
        "learning_rate": tune.loguniform(1e-4, 1e-1),
        "dropout": tune.uniform(0.0, 0.5),
    }
    result = pl.Sweep(
        Classifier,
        space,
        metric="val_loss",
        num_samples=args.trials,
        scheduler=ASHAScheduler(max_t=args.max_epochs, grace_period=1, reduction_factor=3),
        max_concurrent_trials=args.at_once,
        datamodule=data,
        trainer={"max_epochs": args.max_epochs, "accelerator": "cpu"},
        name="digits",
        storage_path=args.root_dir,
    ).run()

    best = result.best_trial
    print(f"\nBest of {len(result)}: trial {best.number}, val_loss {best.value:.4f}, {dict(best.config)}")
    print(f"The page about it: {result.path}/report.html")
    tester = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    tester.test(result.load_best_module(Classifier), datamodule=data)


if __name__ == "__main__":
    main()
