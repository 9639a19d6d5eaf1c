"""Read handwritten digits: train on two workers, tune in a sweep, test the best model. Under a minute in all.

    python examples/digits.py                # two Ray workers on this machine
    python examples/digits.py --devices 1    # trains in this process; only the sweep uses Ray

The data are the 1,797 images of 8x8 pixels that come with scikit-learn, kept in Parquet files.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.loggers import TensorBoardLogger


class Digits(pl.LightningDataModule):
    """Images and labels in three Parquet files: 1,257 to train, 270 to choose a model, 270 to judge it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def prepare_data(self) -> None:
        """Write the files, unless they are there: in one process, before any worker reads them."""
        if (self.folder / "test.parquet").exists():  # trials that run at the same time share the files
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        pixels, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(7)).numpy()
        table = pa.table({"pixels": list(pixels[order] / 16), "label": labels[order]})
        for name, rows in {"train": slice(1257), "val": slice(1257, 1527), "test": slice(1527, None)}.items():
            pq.write_table(table[rows], self.folder / f"{name}.parquet")

    def read(self, name: str) -> TensorDataset:
        """One file as tensors: images (n, 1, 8, 8) and labels (n)."""
        table = pq.read_table(self.folder / f"{name}.parquet")
        pixels = torch.tensor(table["pixels"].to_pylist()).view(-1, 1, 8, 8)
        return TensorDataset(pixels, torch.tensor(table["label"].to_pylist()))

    def train_dataloader(self) -> DataLoader[Any]:
        """32 images a batch for each worker, in another order each epoch."""
        return DataLoader(self.read("train"), batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """What chooses the best model."""
        return DataLoader(self.read("val"), batch_size=128)

    def test_dataloader(self) -> DataLoader[Any]:
        """What nothing has seen before."""
        return DataLoader(self.read("test"), batch_size=128)


class Classifier(pl.LightningModule):
    """One convolution and one linear layer."""

    def __init__(self, width: int = 16, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        convolution = nn.Conv2d(1, width, kernel_size=3, padding=1)
        self.network = nn.Sequential(
            convolution, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * width, 10)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        pixels, labels = batch
        loss: Tensor = nn.functional.cross_entropy(self.network(pixels), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The share of images that were read correctly, over all workers."""
        self.log("val_acc", self.accuracy(batch), sync_dist=True, prog_bar=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The same, once, for the best model."""
        self.log("test_acc", self.accuracy(batch))

    def accuracy(self, batch: list[Tensor]) -> Tensor:
        """The share of one batch whose digit got the highest score."""
        pixels, labels = batch
        scores: Tensor = self.network(pixels)
        return (scores.argmax(dim=1) == labels).float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with the learning rate that the sweep looks for."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def make_trainer(max_epochs: int, **options: Any) -> pl.Trainer:
    """What the first training and every trial have in common: 2 batches of 32 a step, in bfloat16."""
    return pl.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        precision="bf16-mixed",
        accumulate_grad_batches=2,
        **options,
    )


def main() -> None:
    """Train once on all workers, search for better settings, test what was found."""
    parser = argparse.ArgumentParser(description="Train, tune and test a reader of handwritten digits.")
    parser.add_argument("--devices", type=int, default=2, help="workers; 1 trains in this process")
    parser.add_argument("--max-epochs", type=int, default=20, help="epochs of every training")
    parser.add_argument("--trials", type=int, default=8, help="settings that the sweep tries")
    parser.add_argument("--root-dir", type=Path, default=Path("runs/digits"), help="where all files go")
    args = parser.parse_args()
    root = args.root_dir.resolve()
    data = Digits(root / "data")
    pl.seed_everything(7)

    best_epoch = ModelCheckpoint(monitor="val_acc", mode="max")
    logger = TensorBoardLogger(root, name="train")
    trainer = make_trainer(
        args.max_epochs, devices=args.devices, strategy="ddp", callbacks=[best_epoch], logger=logger
    )
    trainer.fit(Classifier(), datamodule=data)
    print(f"{args.devices} worker(s): val_acc {best_epoch.best_model_score:.3f} in the best epoch.\n")

    def train(config: dict[str, Any]) -> None:  # one trial: the same code with other settings
        pl.seed_everything(7)
        make_trainer(args.max_epochs).fit(Classifier(**config), datamodule=data)

    sweep = pl.Sweep(
        train,
        {"learning_rate": tune.loguniform(1e-3, 1e-1), "width": tune.choice([8, 16, 32])},
        metric="val_acc",
        mode="max",
        num_samples=args.trials,
        scheduler=ASHAScheduler(max_t=args.max_epochs, grace_period=min(2, args.max_epochs)),
        storage_path=root / "sweeps",
    )
    best: Any = sweep.run().get_best_result()
    print(f"Best of {args.trials} trials: {best.config}, val_acc {best.metrics['val_acc']:.3f}.\n")

    model = Classifier.load_from_checkpoint(Path(best.checkpoint.path) / "checkpoint.ckpt")
    (metrics,) = pl.Trainer(accelerator="cpu", logger=False).test(model, datamodule=data, verbose=False)
    print(f"Its test accuracy: {metrics['test_acc']:.3f}. Everything is in {root}.")
    print(f"Next, look at the curves: tensorboard --logdir {root}")


if __name__ == "__main__":
    main()
