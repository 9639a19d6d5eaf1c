"""A script written for PyTorch Lightning, moved over: only the three imports that are marked have changed.

    python examples/moved.py                # in this process
    python examples/moved.py --devices 2    # no launcher: two Ray workers

It is the usual autoencoder, on the digits that come with scikit-learn. docs/lightning.md lists every
deliberate difference.
"""

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import orchestrator as pl  # was: import lightning.pytorch as pl
from orchestrator.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
)  # was: lightning.pytorch.
from orchestrator.loggers import CSVLogger  # was: from lightning.pytorch.loggers import CSVLogger


class Autoencoder(pl.LightningModule):
    """Squeezes 64 pixels into a few numbers and back."""

    def __init__(self, size: int = 6, learning_rate: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, size))
        self.decoder = nn.Sequential(nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, 64))
        self.example_input_array = torch.zeros(1, 64)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return what comes back of images of shape (n, 64)."""
        back: Tensor = self.decoder(self.encoder(pixels))
        return back

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss = nn.functional.mse_loss(self(batch[0]), batch[0])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """What is lost of images that it has not seen."""
        self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[0]), prog_bar=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The same, once."""
        self.log("test_loss", nn.functional.mse_loss(self(batch[0]), batch[0]))

    def configure_optimizers(self) -> Any:
        """Adam, slower where validation gets no better."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


def main() -> None:
    """As anywhere: seed, loaders, Trainer, fit, test the best."""
    parser = argparse.ArgumentParser(description="A Lightning script, moved over.")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--max-epochs", type=int, default=30)
    parser.add_argument("--root-dir", default="runs/moved")
    args = parser.parse_args()
    pl.seed_everything(7, workers=True)
    pixels, _ = load_digits(return_X_y=True)
    images = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32))
    train, val, test = random_split(images, [0.8, 0.1, 0.1])
    trainer = pl.Trainer(
        max_epochs=args.max_epochs,
        accelerator="cpu",
        devices=args.devices,
        log_every_n_steps=10,
        logger=CSVLogger(args.root_dir),
        callbacks=[
            ModelCheckpoint(monitor="val_loss"),
            EarlyStopping(monitor="val_loss", patience=5),
            LearningRateMonitor(),
        ],
    )
    trainer.fit(Autoencoder(), DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=64))
    trainer.test(dataloaders=DataLoader(test, batch_size=64), ckpt_path="best")


if __name__ == "__main__":
    main()
