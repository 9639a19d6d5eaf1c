"""Stop a training in the middle of an epoch and go on: the same weights as without the stop. Ten seconds.

    python examples/resume.py

The first training runs through. The second is stopped by a limit in the middle of an epoch, and a third goes
on from its checkpoint, at the very sample, with the same random numbers. Then the weights are compared, bit
by bit. The data come with scikit-learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.loggers import CSVLogger


class Reader(pl.LightningModule):
    """Has dropout, so that random numbers matter, and momentum, so that the optimizer's state does."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss: Tensor = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """SGD with momentum, and a rate that falls step by step."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def train(root: Path, name: str, max_steps: int, ckpt_path: str | None = None) -> Reader:
    """Train to so many steps, with checkpoints in a folder of that name, and return the module."""
    pl.seed_everything(7)
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
    saves = ModelCheckpoint(root / name, every_n_train_steps=10, save_last=True)
    trainer = pl.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        accelerator="cpu",
        log_every_n_steps=10,
        logger=CSVLogger(root),
        callbacks=[saves],
    )
    model = Reader()
    trainer.fit(model, DataLoader(data, batch_size=32, shuffle=True), ckpt_path=ckpt_path)
    return model


def main() -> None:
    """Train through, train with a stop, compare."""
    parser = argparse.ArgumentParser(description="Stop in the middle of an epoch, and go on.")
    parser.add_argument("--max-steps", type=int, default=150, help="optimizer steps; an epoch has 57")
    parser.add_argument("--root-dir", type=Path, default=Path("runs/resume"), help="where all files go")
    args = parser.parse_args()
    root = args.root_dir.resolve()
    through = train(root, "through", args.max_steps)
    train(root, "stopped", args.max_steps // 15 * 10)
    print(f"Stopped, and goes on from {root / 'stopped'}.")
    gone_on = train(root, "stopped", args.max_steps, ckpt_path="last")
    pairs = zip(through.parameters(), gone_on.parameters(), strict=True)
    equal = all(torch.equal(one, other) for one, other in pairs)
    print("Equal to the last bit." if equal else "The weights differ.")


if __name__ == "__main__":
    main()
