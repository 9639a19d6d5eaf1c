"""Kill a worker in the middle of training, and watch the run go on as if nothing had happened. A minute.

    python examples/survive.py

The same training runs twice on two Ray workers: once undisturbed, and once while one of the workers kills
its own process, as a machine that fails would. The other keeps its process; a new one takes the lost rank,
gets its state from there, and the step is run again with the same samples. The weights are equal to the last
bit.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from orchestrator.loggers import CSVLogger


class Reader(pl.LightningModule):
    """Reads digits; rank 1 kills its process, once, before the step that is named.

    Args:
        fatal_step: The step; -1 for none.
        mark: A file that is there once it has happened, so that the new process does not do it again.
    """

    def __init__(self, fatal_step: int, mark: Path) -> None:
        super().__init__()
        self.fatal_step, self.mark = fatal_step, mark
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch, unless this is the end of this process."""
        if self.global_rank == 1 and self.global_step == self.fatal_step and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        loss: Tensor = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def digest(self) -> str:
        """A hash of all weights."""
        data = b"".join(item.detach().numpy().tobytes() for item in self.parameters())
        return hashlib.sha256(data).hexdigest()[:16]


def main() -> None:
    """Train undisturbed, train with a loss, compare."""
    parser = argparse.ArgumentParser(description="Survive the loss of a worker.")
    parser.add_argument("--max-epochs", type=int, default=3, help="epochs of each training")
    parser.add_argument("--root-dir", type=Path, default=Path("runs/survive"), help="where all files go")
    args = parser.parse_args()
    root = args.root_dir.resolve()
    root.mkdir(parents=True, exist_ok=True)
    mark = root / "killed"
    mark.unlink(missing_ok=True)
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
    found = []
    for fatal_step in (-1, 20):
        pl.seed_everything(7)
        model = Reader(fatal_step, mark)
        trainer = pl.Trainer(
            max_epochs=args.max_epochs,
            accelerator="cpu",
            devices=2,
            log_every_n_steps=10,
            logger=CSVLogger(root),
        )
        trainer.fit(model, DataLoader(data, batch_size=32, shuffle=True))
        print(f"{'Undisturbed' if fatal_step < 0 else 'With a loss'}: weights {model.digest()}.\n")
        found.append(model.digest())
    print("Equal to the last bit." if found[0] == found[1] else "The weights differ.")
    print(
        f"What happened stands in {trainer.log_dir}/events.jsonl; see: orchestrator report {trainer.log_dir}"
    )


if __name__ == "__main__":
    main()
