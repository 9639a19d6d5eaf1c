"""The article that compares the two frameworks on random data.

Left out there and completed here: loaders over the article's own random tensors, and the Trainer's call. The
two GPUs that a sentence of it asks for are replaced.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.optim as optim
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from cluster import PlacementError


class SimpleModel(pl.LightningModule):
    def __init__(self):
        super(SimpleModel, self).__init__()  # noqa: UP008
        self.model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2))
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        X, y = batch
        outputs = self.forward(X)
        loss = self.criterion(outputs, y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        X, y = batch
        outputs = self.forward(X)
        loss = self.criterion(outputs, y)
        self.log("val_loss", loss)

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=1e-3)


def data() -> Any:
    """The article's data, in one batch as its plain loop takes it."""
    X = torch.randn(100, 10)
    y = torch.randint(0, 2, (100,))
    return DataLoader(TensorDataset(X, y), batch_size=100)


def test_the_module_computes_what_the_plain_loop_does() -> None:
    """Five epochs of the module and of the article's plain loop give the same weights and losses."""
    lightning, loader = SimpleModel(), data()
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2))
    model.load_state_dict(lightning.model.state_dict())
    trainer = pl.Trainer(max_epochs=5)
    trainer.fit(lightning, loader, loader)

    X, y = next(iter(loader))
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    epochs = 5
    for _ in range(epochs):
        optimizer.zero_grad()
        outputs = model(X)
        loss = criterion(outputs, y)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            val_outputs = model(X)
            val_loss = criterion(val_outputs, y)

    for name, weight in model.state_dict().items():
        assert torch.equal(lightning.model.state_dict()[name], weight)
    assert trainer.callback_metrics["train_loss"] == loss.detach()
    assert trainer.callback_metrics["val_loss"] == val_loss


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:.*is an older form:FutureWarning")
@pytest.mark.skipif(torch.cuda.device_count() >= 2, reason="there are two GPUs")
def test_two_gpus_that_are_not_there_are_one_error() -> None:
    """`Trainer(gpus=2, accelerator='gpu')` says what was asked for and what there is."""
    trainer = pl.Trainer(gpus=2, accelerator="gpu")
    with pytest.raises(PlacementError, match=r"asked 2 x \{CPU: 1, GPU: 1\}.*\n.*GPU: 0"):
        trainer.fit(SimpleModel(), data())


@pytest.mark.ray
def test_the_module_on_two_workers() -> None:
    """With the accelerator replaced the module trains on a group."""
    model = SimpleModel()
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", devices=2, resources_per_worker={"CPU": 0.5})
    trainer.fit(
        model, DataLoader(TensorDataset(torch.randn(100, 10), torch.randint(0, 2, (100,))), 10), data()
    )
    assert trainer.global_step == 2 * 3
    assert trainer.callback_metrics.keys() >= {"train_loss", "val_loss"}
