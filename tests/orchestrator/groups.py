"""What the tests of training on a group share: modules, data, and trainers whose workers fit on two cores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl

HALF_A_CPU = {"CPU": 0.5}


def group_trainer(root: Any, devices: int = 2, **arguments: Any) -> pl.Trainer:
    """A quiet Trainer on `devices` workers of half a CPU each."""
    defaults: dict[str, Any] = {
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": root,
        "start_timeout_s": 200.0,  # a busy machine is no fault
    }
    return pl.Trainer(
        accelerator="cpu", devices=devices, resources_per_worker=HALF_A_CPU, **{**defaults, **arguments}
    )


def points(length: int, features: int = 8, seed: int = 3) -> TensorDataset:
    """`length` points in two classes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(length, features, generator=generator)
    return TensorDataset(inputs, (inputs.sum(dim=1) > 0).long())


def loader(length: int, batch_size: int = 8, features: int = 8, **options: Any) -> DataLoader[Any]:
    """A loader over `points`."""
    return DataLoader(points(length, features), batch_size=batch_size, **options)


class Net(pl.LightningModule):
    """Two linear layers."""

    def __init__(self, features: int = 8, width: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        generator = torch.Generator().manual_seed(11)
        self.net = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 2))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)  # type: ignore[no-any-return]

    def loss(self, batch: Any) -> Tensor:
        """Cross entropy of a batch."""
        inputs, labels = batch
        return nn.functional.cross_entropy(self(inputs), labels)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Noisy(Net):
    """With dropout and a schedule of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(self.dropout(inputs))  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2), "interval": "step"}]
