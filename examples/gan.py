"""Draw digits that nobody has written: a GAN, whose two optimizers the module steps itself. Half a minute.

    python examples/gan.py                # in this process
    python examples/gan.py --devices 2    # two Ray workers

With ``automatic_optimization = False`` the training step decides what is stepped when. The data come with
scikit-learn.
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
from orchestrator.loggers import CSVLogger


class Gan(pl.LightningModule):
    """A network that draws 8x8 pixels from noise, and one that tells them from real ones."""

    automatic_optimization = False

    def __init__(self, noise: int = 16, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.noise, self.learning_rate = noise, learning_rate
        self.draws = nn.Sequential(nn.Linear(noise, 128), nn.ReLU(), nn.Linear(128, 64), nn.Sigmoid())
        self.judges = nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))

    def forward(self, noise: Tensor) -> Tensor:
        """Return images of shape (n, 64) for noise of shape (n, self.noise)."""
        images: Tensor = self.draws(noise)
        return images

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """One step of each: first who draws, then who judges."""
        drawer, judge = self.optimizers()
        real = batch[0]
        drawn = self(torch.randn(len(real), self.noise, device=self.device))

        self.toggle_optimizer(drawer)
        fools = nn.functional.softplus(-self.judges(drawn)).mean()
        drawer.zero_grad()
        self.manual_backward(fools)
        drawer.step()
        self.untoggle_optimizer(drawer)

        self.toggle_optimizer(judge)
        told = nn.functional.softplus(-self.judges(real)) + nn.functional.softplus(
            self.judges(drawn.detach())
        )
        judge.zero_grad()
        self.manual_backward(told.mean())
        judge.step()
        self.untoggle_optimizer(judge)
        self.log_dict({"drawer_loss": fools, "judge_loss": told.mean()}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """An optimizer each."""
        options: dict[str, Any] = {"lr": self.learning_rate, "betas": (0.5, 0.999)}
        return [
            torch.optim.Adam(self.draws.parameters(), **options),
            torch.optim.Adam(self.judges.parameters(), **options),
        ]


def as_text(image: Tensor) -> str:
    """An image of 64 numbers from 0 to 1 as eight lines."""
    shades = " .:-=+*#%@"
    rows = (image.view(8, 8) * (len(shades) - 1)).round().int().tolist()
    return "\n".join("".join(shades[value] * 2 for value in row) for row in rows)


def main() -> None:
    """Train, and print two drawings."""
    parser = argparse.ArgumentParser(description="A GAN with manual optimization.")
    parser.add_argument("--devices", type=int, default=1, help="workers; 1 trains in this process")
    parser.add_argument("--max-epochs", type=int, default=60, help="epochs")
    parser.add_argument("--root-dir", type=Path, default=Path("runs/gan"), help="where all files go")
    args = parser.parse_args()
    pl.seed_everything(7)
    pixels, _ = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32))
    model = Gan()
    trainer = pl.Trainer(
        max_epochs=args.max_epochs,
        accelerator="cpu",
        devices=args.devices,
        logger=CSVLogger(args.root_dir.resolve()),
    )
    trainer.fit(model, DataLoader(data, batch_size=64, shuffle=True))
    with torch.no_grad():
        for image in model(torch.randn(2, model.noise)):
            print(as_text(image))
    print(f"{trainer.global_step} optimizer steps, half of each kind.")


if __name__ == "__main__":
    main()
