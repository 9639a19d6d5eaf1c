"""Points on interleaved spirals: data for a first try of a classifier, made from a seed, without any file.

Features are (n, 2), float32, about within the unit circle; the target is the spiral's number. The same seed
gives the same points on every machine; training, validation and test points differ.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from modules.datamodule import LightningDataModule


class Spirals(LightningDataModule):
    """Points on spirals, to be told apart.

    Args:
        classes: How many spirals there are.
        points: Training points of each; validation and test have a quarter.
        noise: Standard deviation of the points around their spiral.
        batch_size: Rows a batch, for each worker.
        seed: Of the points.
    """

    def __init__(
        self, classes: int = 3, points: int = 400, noise: float = 0.02, batch_size: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.classes, self.points, self.noise = classes, points, noise
        self.batch_size, self.seed = batch_size, seed

    def make(self, points: int, stream: int) -> TensorDataset:
        """Return `points` of each spiral; `stream` numbers independent draws."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + stream)
        target = torch.arange(self.classes).repeat_interleave(points)
        radius = torch.rand(len(target), generator=generator) * 0.9 + 0.1
        angle = 2 * math.pi * (radius + target / self.classes)
        place = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
        return TensorDataset(place + self.noise * torch.randn(place.shape, generator=generator), target)

    def train_dataloader(self) -> DataLoader[Any]:
        """The training points, in another order each epoch."""
        return DataLoader(self.make(self.points, 0), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Points to choose a model by."""
        return DataLoader(self.make(max(1, self.points // 4), 1), batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Points to judge it by."""
        return DataLoader(self.make(max(1, self.points // 4), 2), batch_size=self.batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test points."""
        return self.test_dataloader()
