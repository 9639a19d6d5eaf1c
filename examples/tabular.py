"""Predict how a disease progresses from a Parquet file, read as it is. Ten seconds on a laptop.

    python examples/tabular.py                # in this process
    python examples/tabular.py --devices 2    # two Ray workers, the same script

The data are the 442 patients that come with scikit-learn: ten measurements each, and a number to predict.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

import orchestrator as pl
from orchestrator.callbacks import EarlyStopping, ModelCheckpoint
from orchestrator.loggers import CSVLogger


class Patients(pl.LightningDataModule):
    """Two Parquet files, one row a patient; every column is read, and nothing is converted."""

    def __init__(self, folder: Path, batch_size: int = 32) -> None:
        super().__init__()
        self.folder, self.batch_size = folder, batch_size

    def prepare_data(self) -> None:
        """Write the files: in one process, before any worker reads them."""
        table = load_diabetes(as_frame=True).frame.astype("float32").sample(frac=1.0, random_state=7)
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, rows in {"train": table[:350], "val": table[350:]}.items():
            pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), self.folder / f"{name}.parquet")

    def train_dataloader(self) -> Any:
        """All rows in another order each epoch, dealt to the workers."""
        data = pl.ParquetDataset(self.folder / "train.parquet")
        return data.loader(self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        """The rows that nothing is learned from."""
        return pl.ParquetDataset(self.folder / "val.parquet").loader(self.batch_size)


class Progression(pl.LightningModule):
    """A linear layer and a small network beside it; the target has mean 152 and deviation 77."""

    def __init__(self, width: int = 32, learning_rate: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.linear = nn.Linear(10, 1)
        self.network = nn.Sequential(nn.Linear(10, width), nn.Tanh(), nn.Linear(width, 1))

    def error(self, batch: dict[str, Tensor]) -> Tensor:
        """The mean squared error of a batch, in deviations."""
        target = (batch["target"] - 152) / 77
        columns = [column for name, column in batch.items() if name != "target"]
        inputs = torch.stack(columns, dim=1) * 20  # scikit-learn scales columns to a length of 1
        found = self.linear(inputs) + self.network(inputs)
        return nn.functional.mse_loss(found.squeeze(1), target)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss = self.error(batch)
        self.log("train_error", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The share of the variance that is not explained, over all workers."""
        self.log("val_error", self.error(batch), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, whose decay keeps the network small."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=1.0)


def main() -> None:
    """Train until validation gets no better, and judge the best epoch."""
    parser = argparse.ArgumentParser(description="Regression on a Parquet file.")
    parser.add_argument("--devices", type=int, default=1, help="workers; 1 trains in this process")
    parser.add_argument("--max-epochs", type=int, default=60, help="epochs at most")
    parser.add_argument("--root-dir", type=Path, default=Path("runs/tabular"), help="where all files go")
    args = parser.parse_args()
    root = args.root_dir.resolve()
    pl.seed_everything(7)
    best = ModelCheckpoint(monitor="val_error")
    trainer = pl.Trainer(
        max_epochs=args.max_epochs,
        accelerator="cpu",
        devices=args.devices,
        log_every_n_steps=5,
        logger=CSVLogger(root),
        callbacks=[best, EarlyStopping("val_error", patience=10)],
    )
    trainer.fit(Progression(), datamodule=Patients(root / "data"))
    print(f"Explained variance of the best epoch: {1 - float(best.best_model_score or 1):.3f}.")
    print(f"Next, look at the run: orchestrator report {trainer.log_dir}")


if __name__ == "__main__":
    main()
