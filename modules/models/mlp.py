"""Multilayer perceptrons that classify rows of numbers, or predict a number for each.

A batch is ``(features, target)``: features of shape (n, in_features), float32; the target of shape (n,),
whole numbers from 0 for classes, floats for regression. `predict_step` takes such a batch, or features alone.
Adam trains them. Features of another width are refused in the first batch, with both numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modules.module import LightningModule


def make_network(in_features: int, hidden: Sequence[int], out_features: int, dropout: float) -> nn.Sequential:
    """Return linear layers of the widths `hidden`, with ReLU and dropout between them."""
    layers: list[nn.Module] = []
    width = in_features
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers, nn.Linear(width, out_features))


class _Perceptron(LightningModule):
    """What both have in common: the network, the steps, the optimizer."""

    network: nn.Sequential
    in_features: int
    lr: float
    weight_decay: float

    def forward(self, features: Tensor) -> Tensor:
        """Return the network's raw outputs for features of shape (n, in_features)."""
        if features.shape[-1] != self.in_features:
            raise ValueError(
                f"{type(self).__name__}(in_features={self.in_features}) got {features.shape[-1]} features a "
                f"row. Set in_features={features.shape[-1]}."
            )
        out: Tensor = self.network(features)
        return out

    def measure(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the loss and other numbers of a batch, each a mean over its rows."""
        raise NotImplementedError

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Log ``train_loss`` and return it."""
        loss = self.measure(batch)["loss"]
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log ``val_loss`` and the rest, over all ranks."""
        self._log_all("val", batch)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log ``test_loss`` and the rest, over all ranks."""
        self._log_all("test", batch)

    def _log_all(self, stage: str, batch: Sequence[Tensor]) -> None:
        for name, value in self.measure(batch).items():
            self.log(f"{stage}_{name}", value, sync_dist=True, prog_bar=stage == "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with decoupled weight decay."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)


class MLPClassifier(_Perceptron):
    """Tells which class a row of numbers belongs to; logs ``*_loss`` (cross entropy) and ``*_acc``.

    Args:
        in_features: Numbers in a row.
        classes: How many classes there are.
        hidden: Widths of the hidden layers.
        dropout: Share of hidden outputs that are dropped in training.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        in_features: int,
        classes: int,
        hidden: Sequence[int] = (64, 64),
        dropout: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.in_features, self.lr, self.weight_decay = in_features, lr, weight_decay
        self.network = make_network(in_features, hidden, classes, dropout)

    def measure(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return cross entropy and the share of rows that are classified correctly."""
        features, target = batch
        scores = self(features)
        right = (scores.argmax(dim=-1) == target).float().mean()
        return {"loss": nn.functional.cross_entropy(scores, target.long()), "acc": right}

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the most probable class of each row: shape (n,), int64."""
        found: Tensor = self(_features_of(batch)).argmax(dim=-1)
        return found


class MLPRegressor(_Perceptron):
    """Predicts a number for a row of numbers; logs ``*_loss`` (mean squared error) and ``*_mae``.

    Args:
        in_features: Numbers in a row.
        hidden: Widths of the hidden layers.
        dropout: Share of hidden outputs that are dropped in training.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (64, 64),
        dropout: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.in_features, self.lr, self.weight_decay = in_features, lr, weight_decay
        self.network = make_network(in_features, hidden, 1, dropout)

    def measure(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return mean squared and mean absolute error."""
        features, target = batch
        wrong = self(features).squeeze(-1) - target
        return {"loss": wrong.square().mean(), "mae": wrong.abs().mean()}

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the prediction for each row: shape (n,)."""
        found: Tensor = self(_features_of(batch)).squeeze(-1)
        return found


def _features_of(batch: Any) -> Tensor:
    found: Tensor = batch[0] if isinstance(batch, (list, tuple)) else batch
    return found
