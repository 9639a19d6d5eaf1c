"""Learn the digits 0 to 4, then take what was learned to 5 to 9, with few examples. Ten seconds.

    python examples/finetune.py

First a whole network learns the first five digits. Then a new last layer is put on it: `BackboneFinetuning`
holds everything else still for some epochs, and then lets it follow with a smaller learning rate. The data
come with scikit-learn.
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
from orchestrator.callbacks import BackboneFinetuning
from orchestrator.loggers import CSVLogger

FEW = 100


class Reader(pl.LightningModule):
    """A backbone of convolutions and a head of one layer, for five digits from `first` on."""

    def __init__(self, first: int = 0, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.first, self.learning_rate = first, learning_rate
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(32 * 16, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return scores of shape (n, 5) for images of shape (n, 1, 8, 8)."""
        scores: Tensor = self.head(self.backbone(pixels))
        return scores

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1] - self.first)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The share of images that were read correctly."""
        right = self(batch[0]).argmax(dim=1) == batch[1] - self.first
        self.log("val_acc", right.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam for what learns now; what is frozen joins when it thaws."""
        return torch.optim.Adam(
            filter(lambda item: item.requires_grad, self.parameters()), self.learning_rate
        )


def digits(first: int, few: int | None = None) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of the five digits from `first` on: `few` images to learn from, and 200 to judge by."""
    pixels, labels = load_digits(return_X_y=True)
    chosen = (labels >= first) & (labels < first + 5)
    images = torch.tensor(pixels[chosen] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    data = TensorDataset(images, torch.tensor(labels[chosen]))
    train = range(200, len(data) if few is None else 200 + few)
    return (
        DataLoader(torch.utils.data.Subset(data, train), batch_size=32, shuffle=True),
        DataLoader(torch.utils.data.Subset(data, range(200)), batch_size=200),
    )


def main() -> None:
    """Learn, take over, learn again."""
    parser = argparse.ArgumentParser(description="Fine-tuning with a frozen backbone.")
    parser.add_argument("--max-epochs", type=int, default=12, help="epochs of each training")
    parser.add_argument("--root-dir", type=Path, default=Path("runs/finetune"), help="where all files go")
    args = parser.parse_args()
    root = args.root_dir.resolve()
    pl.seed_everything(7)

    def trainer(*callbacks: pl.Callback) -> pl.Trainer:
        logger = CSVLogger(root)
        return pl.Trainer(
            max_epochs=args.max_epochs,
            accelerator="cpu",
            logger=logger,
            log_every_n_steps=2,
            callbacks=list(callbacks),
        )

    first = trainer()
    first.fit(Reader(), *digits(0))
    path = f"{root}/first.ckpt"
    first.save_checkpoint(path)

    model = Reader.load_from_checkpoint(path, first=5)
    model.head = nn.Linear(32 * 16, 5)
    thaw = BackboneFinetuning(unfreeze_backbone_at_epoch=max(1, args.max_epochs // 2))
    second = trainer(thaw)
    second.fit(model, *digits(5, few=FEW))
    accuracy = float(second.callback_metrics["val_acc"])
    print(f"With {FEW} images of five new digits: accuracy {accuracy:.3f}.")


if __name__ == "__main__":
    main()
