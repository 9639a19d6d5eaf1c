"""Read handwritten digits: train on two workers, tune in a sweep, test the best model.

    python examples/digits.py                # two Ray workers on this machine
    python examples/digits.py --devices 1    # in this process; only the sweep uses Ray

The data are the 1,797 images of 8x8 pixels that come with scikit-learn, kept in Parquet files. It ends in under a minute.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.loggers import TensorBoardLogger

ROWS = {"train": slice(0, 1257), "val": slice(1257, 1527), "test": slice(1527, 1797)}


class Digits(pl.LightningDataModule):
    """Images and labels, split once and for all into three Parquet files."""

    def __init__(self, folder: Path, batch_size: int = 32) -> None:
        super().__init__()
        self.folder = folder
        self.batch_size = batch_size

    def prepare_data(self) -> None:
        """Write the files; runs in one process, before `setup` runs in all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        images, labels = load_digits(return_X_y=True)
        shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(7)).numpy()
        table = pa.table({"pixels": list(images[shuffled] / 16), "label": labels[shuffled]})
        for name, rows in ROWS.items():
            pq.write_table(table[rows], self.folder / f"{name}.parquet")

    def setup(self, stage: str) -> None:
        """Read the files."""
        self.splits = {}
        for name in ROWS:
            table = pq.read_table(self.folder / f"{name}.parquet")
            pixels = torch.tensor(table["pixels"].to_pylist()).view(-1, 1, 8, 8)
            self.splits[name] = TensorDataset(pixels, torch.tensor(table["label"].to_numpy()))

    def train_dataloader(self) -> DataLoader[Any]:
        """1,257 images, in another order each epoch."""
        return DataLoader(self.splits["train"], self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """270 images that choose the best model."""
        return DataLoader(self.splits["val"], 256)

    def test_dataloader(self) -> DataLoader[Any]:
        """270 images that nothing has seen."""
        return DataLoader(self.splits["test"], 256)


class Classifier(pl.LightningModule):
    """One convolution and one linear layer."""

    def __init__(self, width: int = 32, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.network = nn.Sequential(
            nn.Conv2d(1, width, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * width, 10)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        pixels, labels = batch
        loss = nn.functional.cross_entropy(self.network(pixels), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Count what the model gets right."""
        self.log("val_acc", self.accuracy(batch), sync_dist=True, prog_bar=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The same, on the images that nothing has seen."""
        self.log("test_acc", self.accuracy(batch), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with the rate that the sweep looks for."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def accuracy(self, batch: list[Tensor]) -> Tensor:
        """The share of images whose digit has the highest score."""
        pixels, labels = batch
        return (self.network(pixels).argmax(dim=1) == labels).float().mean()


def make_trainer(max_epochs: int, **arguments: Any) -> pl.Trainer:
    """A Trainer that keeps the checkpoint with the best validation accuracy."""
    return pl.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        precision="bf16-mixed",
        accumulate_grad_batches=2,
        callbacks=[ModelCheckpoint(monitor="val_acc", mode="max")],
        **arguments,
    )


def main() -> None:
    """Train once, search for better settings, and test the best."""
    parser = argparse.ArgumentParser(description="Train, tune and test a model of handwritten digits.")
    parser.add_argument("--devices", type=int, default=2, help="workers of the first training (1: in this process)")
    parser.add_argument("--max-epochs", type=int, default=20, help="epochs of every training")
    parser.add_argument("--trials", type=int, default=8, help="trials of the sweep")
    parser.add_argument("--root-dir", type=Path, default=Path("runs/digits"), help="where everything is written")
    arguments = parser.parse_args()
    root = arguments.root_dir.resolve()
    data = Digits(root / "data")

    pl.seed_everything(7)
    logger = TensorBoardLogger(root, name="train")
    trainer = make_trainer(arguments.max_epochs, devices=arguments.devices, strategy="ddp", logger=logger)
    trainer.fit(Classifier(), datamodule=data)
    print(f"{arguments.devices} worker(s): val_acc {trainer.callback_metrics['val_acc']:.3f}")

    def train(config: dict[str, Any]) -> None:
        make_trainer(arguments.max_epochs).fit(Classifier(**config), datamodule=data)

    space = {"learning_rate": tune.loguniform(3e-4, 3e-2), "width": tune.choice([8, 16, 32])}
    scheduler = ASHAScheduler(max_t=arguments.max_epochs, grace_period=4)
    sweep = pl.Sweep(train, space, metric="val_acc", mode="max", num_samples=arguments.trials, scheduler=scheduler)
    best = sweep.run().get_best_result()
    print(f"{arguments.trials} trials, best {best.config}: val_acc {best.metrics['val_acc']:.3f}")
