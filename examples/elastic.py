"""Train the same script on 1, 2 and 3 workers: one hash of the weights, one stream of metrics.

    python examples/elastic.py                # in this process, then on two and three Ray workers
    python examples/elastic.py --workers 1 2

The model has dropout and batch statistics, and the epoch does not divide evenly: what usually depends on the
number of workers. Each worker reserves a fraction of a CPU, so all of them fit on a laptop.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from orchestrator.loggers import CSVLogger
from orchestrator.strategies import ElasticStrategy


class Digits(pl.LightningModule):
    """Reads handwritten digits of 8x8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy, logged for each step and over all samples of the epoch."""
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The share of digits that are read right."""
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def train(workers: int, folder: Path) -> tuple[str, str, float]:
    """Train on so many workers; return the hashes of weights and metrics, and the accuracy."""
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
    pl.seed_everything(1, verbose=False)
    module = Digits()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=workers,
        resources_per_worker={"CPU": 0.2} if workers > 1 else None,
        strategy=ElasticStrategy(logical_ranks=6),
        max_epochs=2,
        gradient_clip_val=1.0,
        logger=CSVLogger(folder),
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train_set, test_set = TensorDataset(*data[:1300]), TensorDataset(*data[1300:])
    trainer.fit(
        module, DataLoader(train_set, batch_size=16, shuffle=True), DataLoader(test_set, batch_size=64)
    )
    weights = hashlib.sha256()
    for tensor in module.state_dict().values():
        weights.update(tensor.numpy().tobytes())
    metrics = hashlib.sha256((Path(str(trainer.log_dir)) / "metrics.csv").read_bytes())
    return weights.hexdigest()[:16], metrics.hexdigest()[:16], float(trainer.callback_metrics["accuracy"])


def main() -> None:
    """Train on each number of workers, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3])
    found = set()
    with tempfile.TemporaryDirectory() as folder:
        for workers in parser.parse_args().workers:
            weights, metrics, accuracy = train(workers, Path(folder))
            print(f"{workers} workers: weights {weights}, metrics {metrics}, accuracy {accuracy:.3f}")
            found.add((weights, metrics))
    print("The same bits on any number of workers." if len(found) == 1 else "The runs differ!")
    raise SystemExit(len(found) != 1)


if __name__ == "__main__":
    main()
